/* x86-64 with AVX-512 and VNNI: Intel from 2019 (servers) on, AMD from Zen 4 on. */
#if defined __x86_64__
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,bmi2")
#include <immintrin.h>
#define VL 16
#define ROWS 10
#define OFFSET 128 /* the instruction wants the rows unsigned */
#define STEP step_avx512
#include "step.h"
#endif
