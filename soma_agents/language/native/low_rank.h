/* Low-rank corrections of a step's rows, each by its own adapter, for `kernels.c`: y += (x·Aᵀ)·Bᵀ
   at every projection that the adapter has, the scale inside B. */

#pragma once

#include "numbers.h"

enum { PROJECTIONS = 7 };

struct low_rank {
    const bf16 *down; /* (ranks, inputs) */
    const bf16 *up;   /* (tiles of outputs, pairs of ranks, 16 outputs, 2) */
};

struct adapter {
    const struct low_rank *projections; /* (layers, PROJECTIONS); null pointers where it has none */
    int64_t ranks;                      /* a multiple of TILE */
};

/* The adapters of a step's rows, and the states between A and B. */
struct corrections {
    const struct adapter *const *adapters; /* (rows); a null pointer is none */
    int64_t ranks;                         /* of the largest; 0 if no row has one */
    bf16 *between;                         /* (rows, most projections of a site, ranks) */
};

/* A fused matrix: which projections lie in it above each other. */
struct site {
    long inputs, outputs, first, count, heights[3];
};

INLINE const struct low_rank *correction_of(const struct corrections *c, long row, long layer, long p)
{
    const struct adapter *a = c->adapters[row];
    const struct low_rank *found = a ? a->projections + layer * PROJECTIONS + p : 0;
    return found && found->down ? found : 0;
}

/* The calling thread's share of x·Aᵀ, of all rows with an adapter: 16 ranks of a row at a time. */
static void share_of_down(const struct corrections *c, const struct site *s, long layer, const bf16 *x,
                          long rows)
{
    const long blocks = c->ranks / TILE;
#pragma omp for schedule(static, 1) nowait
    for (long task = 0; task < s->count * blocks * rows; task++) {
        const long row = task % rows, block = task / rows % blocks, p = task / rows / blocks;
        const struct low_rank *l = correction_of(c, row, layer, s->first + p);
        if (l && block * TILE < c->adapters[row]->ranks) {
            bf16 *to = c->between + (row * s->count + p) * c->ranks + block * TILE;
            floats sums[PARTS];
            dots(sums, x + row * s->inputs, l->down + block * TILE * s->inputs, TILE, s->inputs);
            EACH for (int part = 0; part < PARTS; part++) narrow(to + part * LANES, sums[part]);
        }
    }
}

/* One row's correction of tiles `tile` to `end` of a projection, added to `y`, where it begins. */
static void correct(const bf16 *between, const bf16 *up, long ranks, bf16 *y, long tile, long end)
{
    for (bf16 *to = y + tile * TILE; to < y + end * TILE; to += LANES) {
        const long column = (to - y) % TILE;
        const bf16 *from = up + (to - y - column) * ranks + 2 * column;
        floats sum = widen(to);
        for (long i = 0; i < ranks; i += 2)
            sum = plus_pairs(sum, get_halves(from + i * TILE), all_pairs(between + i));
        narrow(to, sum);
    }
}

/* Adds the corrections to the outputs that `share_of_product` gave to the calling thread, once all
   of `share_of_down` is done. */
static void share_of_up(const struct corrections *c, const struct site *s, long layer, bf16 *y, long rows)
{
    long tile, end, begin = 0;
    share_of_tiles(s->outputs, &tile, &end);
    for (long p = 0; p < s->count; begin += s->heights[p++] / TILE) {
        const long from = tile > begin ? tile - begin : 0, most = s->heights[p] / TILE;
        const long to = end - begin < most ? end - begin : most;
        for (long row = 0; row < rows; row++) {
            const struct low_rank *l = correction_of(c, row, layer, s->first + p);
            const bf16 *between = c->between + (row * s->count + p) * c->ranks;
            bf16 *start = y + row * s->outputs + begin * TILE;
            if (l) correct(between, l->up, c->adapters[row]->ranks, start, from, to);
        }
    }
}
