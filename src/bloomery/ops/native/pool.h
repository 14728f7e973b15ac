/* One team of threads for all kernels. Knows no kernel. */

#ifndef BLOOMERY_POOL_H
#define BLOOMERY_POOL_H

typedef void (*Part)(const void *job, long part);

/* Call part(job, 0) … part(job, parts - 1), each once, on at most so many threads, the caller's among them, and return
   when all are done. Which thread takes which part is not fixed, so a part must not depend on it.

   Neighbouring parts go to one thread, which so reads one stretch of memory; who is through helps the others. A thread
   that another process keeps from running is not waited for unless it has begun a part. A second caller, or one within
   a part, does all of its parts alone. */
void bloomery_share(Part part, const void *job, long parts, long threads);

#endif
