/* Any other machine, as far as the compiler takes it. */
#define VL 4
#define ROWS 2
#define OFFSET 0
#define STEP step_plain
#include "step.h"
