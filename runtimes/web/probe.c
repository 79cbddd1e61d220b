/* The inner loop of the sparse product twice: with multiply and add, and with relaxed multiply-add. An engine that does not
 * know relaxed SIMD refuses the module; one that does is asked which of the two is faster. */
typedef float vec __attribute__((vector_size(16)));

#define DEPTH 64

/* Not static: the compiler must not know that they are zeros. */
vec x[DEPTH][2], y[8];
float w[DEPTH][4];

#define BODY(MADD)                                                                                                     \
    vec a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0}, a4 = {0}, a5 = {0}, a6 = {0}, a7 = {0};                                \
    for (int r = 0; r < rounds; r++)                                                                                   \
        for (int i = 0; i < DEPTH; i++) {                                                                              \
            const vec p = x[i][0], q = x[i][1];                                                                        \
            const vec w0 = vec_of(w[i][0]), w1 = vec_of(w[i][1]), w2 = vec_of(w[i][2]), w3 = vec_of(w[i][3]);          \
            a0 = MADD(w0, p, a0), a1 = MADD(w0, q, a1), a2 = MADD(w1, p, a2), a3 = MADD(w1, q, a3);                    \
            a4 = MADD(w2, p, a4), a5 = MADD(w2, q, a5), a6 = MADD(w3, p, a6), a7 = MADD(w3, q, a7);                    \
        }                                                                                                              \
    y[0] = a0, y[1] = a1, y[2] = a2, y[3] = a3, y[4] = a4, y[5] = a5, y[6] = a6, y[7] = a7

static inline vec vec_of(float value) {
    return (vec){value, value, value, value};
}

#define PLAIN(a, b, c) ((a) * (b) + (c))

__attribute__((export_name("plain"))) void plain(int rounds) {
    BODY(PLAIN);
}

__attribute__((export_name("relaxed"))) void relaxed(int rounds) {
    BODY(__builtin_wasm_relaxed_madd_f32x4);
}

/* The results, so that they are not computed for nothing. */
__attribute__((export_name("sums"))) const void *sums(void) {
    return y;
}
