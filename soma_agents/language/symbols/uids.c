/* One step of xorshift64* after another, in eight lanes at a time. See uids.py. */

#include <stdint.h>
#include <string.h>

enum { TOGETHER = 8 };

/* A lane in each place; the compiler takes as many registers for it as the processor needs. */
typedef uint64_t lanes_t __attribute__((vector_size(8 * TOGETHER)));

#ifdef __x86_64__
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
/* The ids after each state (lanes) into its row of made (lanes, steps), both multiples of TOGETHER. */
void fill(const uint64_t *states, uint64_t *made, long lanes, long steps)
{
    for (long lane = 0; lane < lanes; lane += TOGETHER) {
        lanes_t x;
        memcpy(&x, states + lane, sizeof x);
        for (long step = 0; step < steps; step += TOGETHER) {
            uint64_t ids[TOGETHER][TOGETHER]; /* (steps, lanes): turned in registers, not in memory */
            for (int i = 0; i < TOGETHER; i++) {
                x ^= x >> 12;
                x ^= x << 25;
                x ^= x >> 27;
                lanes_t scrambled = x * 2685821657736338717u;
                memcpy(ids[i], &scrambled, sizeof scrambled);
            }
            for (int row = 0; row < TOGETHER; row++)
                for (int i = 0; i < TOGETHER; i++)
                    made[(lane + row) * steps + step + i] = ids[i][row];
        }
    }
}
