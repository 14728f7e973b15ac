/* All kernels, for processors with AVX-512 with VNNI. */

#include "level.h"

#ifdef HAS_X86
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define KERNELS bloomery_avx512
#define ROWS 4
#define COLUMNS 4
#include "level.inc.h"
#endif
