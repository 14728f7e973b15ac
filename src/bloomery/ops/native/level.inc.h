/* Every kernel, for the level of the file that includes this: KERNELS is the name of its table, and ROWS by COLUMNS
   a tile of attention whose sums fit into its registers. */

#include "kernels.h"
#include "lanes.h"
#include "dtypes.h"
#include "sums.h"

/* The tile of linear_rows.h, in registers of which AVX-512 has 32 and others 16. */
#define OUTPUTS 4
#if WIDTH == 64
#define TOKENS 4
#else
#define TOKENS 2
#endif

#define AHEAD 2048 /* bytes that are fetched before they are wanted; past the end it does no harm */
#define PAGE 4096  /* bytes */
#define FEW 16     /* tokens up to which weights are read from memory once, rather than from the second cache */

/* In which order a tile's rows of weights come from memory. A processor foresees one stream in each page: where several
   rows share a page, reading them at once takes up to twice as long as one after the other (docs/log.md). With several
   tokens it takes them at once nevertheless, and fetches the next rows meanwhile, in turn, or each beside its own. */
enum { PLAIN, IN_TURN, NEXT_IN_TURN, NEXT };

#define KERNEL linear_fp32
#define TILE tile_fp32
#define TILES tiles_fp32
#define REST rest_fp32
#define Number float
#define STEP (WIDTH / 4)
#define Vector Sum
#define LOAD sum_fp32
#define DOT(sum, w, x) ((sum) + (w) * (x))
#define LOAD_ONE(p) (*(p))
#define STORE_ONE(p, x) (*(p) = (x))
#include "linear_rows.h"

/* Two bf16 numbers' product is exact in fp32. */
#define KERNEL linear_bf16
#define TILE tile_bf16
#define TILES tiles_bf16
#define REST rest_bf16
#define Number uint16_t
#ifdef __AVX512BF16__
#define STEP 32
#define Vector __m512bh
#define LOAD(p) ((__m512bh)_mm512_loadu_si512(p))
#define DOT(sum, w, x) ((Sum)_mm512_dpbf16_ps((__m512)(sum), w, x))
#else
#define STEP (WIDTH / 4)
#define Vector Sum
#define LOAD sum_bf16
#define DOT(sum, w, x) ((sum) + (w) * (x))
#endif
#define LOAD_ONE one_bf16
#define STORE_ONE put_bf16
#include "linear_rows.h"

#include "bytes.h"
#include "linear_packed.h"
#include "rows.h"
#include "draw.h"
#include "sum_bytes.h"

#include "attention.h"
#include "attention_keep.h"
#include "attention_tile.h"

#define ATTEND attend_fp32
#define ATTEND_SO attend_fp32_so
#define TURN turn_fp32
#define UNPACK unpack_fp32
#define KEPT FP32
#define Number float
#define NUMBERS_OF(word) {(FloatSquares)(word)}
#define LOAD_ONE(p) (*(p))
#include "attention_rows.h"

#define ATTEND attend_bf16
#define ATTEND_SO attend_bf16_so
#define TURN turn_bf16
#define UNPACK unpack_bf16
#define KEPT BF16
#define Number uint16_t
#define NUMBERS_OF(word) {(FloatSquares)((word) << 16), (FloatSquares)((word) & 0xffff0000)}
#define LOAD_ONE one_bf16
#include "attention_rows.h"

#define ATTEND attend_int8
#define ATTEND_SO attend_int8_so
#define TURN turn_int8
#define UNPACK unpack_int8
#define KEPT INT8
#define Number int8_t
#define NUMBERS_OF(word) {byte_of(word, 0), byte_of(word, 1), byte_of(word, 2), byte_of(word, 3)}
#define LOAD_ONE(p) (*(p))
#include "attention_rows.h"

const Kernels KERNELS = {
    .linear = {[FP32] = linear_fp32, [BF16] = linear_bf16},
    .round_tokens = round_tokens,
    .packed8 = packed8,
    .packed4 = packed4,
    .norm = norm,
    .each = each,
    .largest = largest,
    .weigh_all = weigh_all,
    .pass = pass,
    .gather = gather,
    .rotate = rotate,
    .keep = {[FP32] = keep_fp32, [BF16] = keep_bf16, [INT8] = keep_int8},
    .attend = {[FP32] = attend_fp32, [BF16] = attend_bf16, [INT8] = attend_int8},
    .sum_bytes = sum_bytes,
};
