/* Which levels there are, and which this processor has. */

#include "kernels.h"

const Kernels *bloomery_kernels(int64_t level)
{
#ifdef HAS_X86
    static const Kernels *const levels[LEVELS] = {&bloomery_portable, &bloomery_avx2, &bloomery_avx512,
                                                  &bloomery_avx512_bf16};
    return levels[level];
#else
    (void)level;
    return &bloomery_portable;
#endif
}

/* The highest level that this processor and its operating system have. */
int bloomery_highest_level(void)
{
#ifdef HAS_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vnni"))
        return AVX2;
    return __builtin_cpu_supports("avx512bf16") ? AVX512_BF16 : AVX512;
#else
    return PORTABLE;
#endif
}
