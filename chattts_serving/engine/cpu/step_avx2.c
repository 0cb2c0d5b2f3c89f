/* x86-64 with AVX2 and FMA: nearly every one since 2015. */
#if defined __x86_64__
#pragma GCC target("avx2,fma,bmi2")
#include <immintrin.h>
#define VL 8
#define ROWS 3
#define OFFSET 0
#define STEP step_avx2
#include "step.h"
#endif
