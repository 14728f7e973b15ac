/* All kernels, for processors with AVX2 and FMA. */

#include "level.h"

#ifdef HAS_X86
#include <immintrin.h>
#pragma GCC target("avx2,fma")
#define KERNELS bloomery_avx2
#define ROWS 2
#define COLUMNS 2
#include "level.inc.h"
#endif
