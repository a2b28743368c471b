/* One step of xorshift64* after another, in many lanes. See uids.py. */

#include <stdint.h>

/* Lanes of a turn: no step waits for another lane's, and the compiler puts them side by side. */
enum { TOGETHER = 4 };

/* The ids after each state (lanes) into its row of made (lanes, steps); lanes is a multiple of TOGETHER. */
void fill(const uint64_t *states, uint64_t *made, long lanes, long steps)
{
    for (long first = 0; first < lanes; first += TOGETHER) {
        uint64_t x[TOGETHER];
        for (int lane = 0; lane < TOGETHER; lane++)
            x[lane] = states[first + lane];
        uint64_t *rows = made + first * steps;
        for (long step = 0; step < steps; step++)
            for (int lane = 0; lane < TOGETHER; lane++) {
                uint64_t next = x[lane];
                next ^= next >> 12;
                next ^= next << 25;
                next ^= next >> 27;
                x[lane] = next;
                rows[lane * steps + step] = next * 2685821657736338717u;
            }
    }
}
