/* All kernels, for any processor. */

#define KERNELS bloomery_portable
#define ROWS 2
#define COLUMNS 1
#include "level.inc.h"
