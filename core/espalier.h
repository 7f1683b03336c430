/* Espalier core: tensors, transformer operations, importance and distillation kernels, files, tokenizers.
 *
 * This header is the manual of the core and the only declaration of it: the build embeds its preprocessed text, and
 * lua/espalier/ffi.lua binds exactly that text. The core knows nothing of Lua.
 *
 * Errors.    Every function that can fail returns int: 0 is success, negative is one of esp_status. The sentence is
 *            esp_error(), thread-local, naming the operation, the argument, what came and what was wanted.
 * Outputs    come first, inputs are const, scalars last. The caller allocates outputs; operations never allocate tensors.
 * Names      ending in _acc add to their output; all others overwrite it.
 * Letters    B batch, T positions (tokens of a row), N rows (tokens in all), C channels, V vocabulary, H query heads,
 *            G key/value heads, D channels of a head.
 * Counts     are int64_t. Indices count from 0.
 */
#ifndef ESPALIER_H
#define ESPALIER_H

#ifndef ESP_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* ---- status ------------------------------------------------------------------------------------------------------ */

enum esp_status {
    ESP_OK = 0,
    ESP_EARG = -1,    /* an argument that cannot be */
    ESP_ESHAPE = -2,  /* shapes that do not fit each other */
    ESP_EDTYPE = -3,  /* a dtype that the operation does not take */
    ESP_EMEM = -4,    /* no memory, or the byte budget is spent */
    ESP_EIO = -5,     /* the operating system refused (open, write, full disk ...) */
    ESP_EFORMAT = -6, /* a file whose content is wrong */
    ESP_ESTOP = -7    /* interrupted by esp_interrupt */
};

/* Text of the last error of this thread; "" if there was none. Valid until the next failing call of this thread. */
const char *esp_error(void);

/* ---- the library itself ------------------------------------------------------------------------------------------ */

const char *esp_header(void);       /* this header as the build preprocessed it: the text that a binding binds */
const char *esp_checksum(void);     /* of that text; the HDF5 library must carry the same */
const char *esp_op_names(void);     /* names of ESP_OPS, each ended by a newline */
const char *esp_library_path(void); /* the file that this library was loaded from */

/* ---- the process: threads, interruption, memory, clock -------------------------------------------------------------- */

/* Sets the number of worker threads; only before the first parallel operation, afterwards an error unless n is what is set.
 * Without a call: ESPALIER_THREADS, else the cores this process may run on. Results never depend on this number. */
int esp_threads_set(int n);
int esp_threads(void);

/* Asks running operations to end with ESP_ESTOP at their next block (async-signal-safe); clear before going on. */
void esp_interrupt(void);
void esp_interrupt_clear(void);
int esp_interrupted(void);

/* Tensor bytes: live now, the highest so far, allocations that reached malloc. Freed blocks are cached for reuse and do not count
 * as live. */
int64_t esp_memory_live(void);
int64_t esp_memory_peak(void);
int64_t esp_memory_mallocs(void);
/* Above `bytes` live, an allocation fails with ESP_EMEM; 0 is no limit. */
void esp_memory_budget(int64_t bytes);
/* Fails the n-th allocation from now, once (n = 1 is the next); 0 turns it off. For tests. */
void esp_memory_fail_at(int64_t n);
/* Gives cached blocks back to the system. */
void esp_memory_trim(void);

double esp_clock(void);            /* seconds, monotonic */
int64_t esp_rss(void);             /* resident bytes of this process now */
int64_t esp_rss_peak(void);        /* ... and at most */
int64_t esp_memory_available(void);/* bytes this machine (or this cgroup) could still give */
const char *esp_cpu_name(void);    /* model name of the processor */
const char *esp_isa_name(void);    /* instruction set of the kernels written for one: generic, avx2, avx512, avx512_bf16, amx; ESPALIER_ISA lowers it */

/* ---- tensors --------------------------------------------------------------------------------------------------------- */

/* f64 holds statistics and the scalars of a training step; f16 and f8 are storage formats: copy() and take() convert them (f8 is only read),
 * other operations refuse them. */
enum esp_dtype { ESP_F32 = 0, ESP_BF16 = 1, ESP_F16 = 2, ESP_I32 = 3, ESP_U8 = 4, ESP_F64 = 5, ESP_F8_E4M3 = 6, ESP_F8_E5M2 = 7 };

enum { ESP_MAX_DIMS = 6 };

/* A view (shape, strides, offset, counted in elements) of reference-counted bytes. */
typedef struct esp_tensor esp_tensor;

/* A new dense tensor; contents undefined. ndim 0 is a scalar. Errors: ESP_EARG (dims, overflow), ESP_EMEM. */
int esp_tensor_new(esp_tensor **out, int dtype, int ndim, const int64_t *shape);
/* Another view of the same bytes: offset in elements from the start of t. Strides of 0 repeat. Bounds are checked. */
int esp_tensor_view(esp_tensor **out, const esp_tensor *t, int ndim, const int64_t *shape, const int64_t *stride, int64_t offset);
/* Releases the bytes (the last view frees them); the header stays and any use of it is an error. May be called twice. */
void esp_tensor_drop(esp_tensor *t);
/* Drops, then frees the header. NULL is allowed. Only the owner of the header calls this, once. */
void esp_tensor_free(esp_tensor *t);
int esp_tensor_dtype(const esp_tensor *t);
int esp_tensor_ndim(const esp_tensor *t);
const int64_t *esp_tensor_shape(const esp_tensor *t);
const int64_t *esp_tensor_stride(const esp_tensor *t);
int64_t esp_tensor_count(const esp_tensor *t);       /* elements */
/* Address of the first element; NULL with an error set if dropped, or if the mapped file became shorter. Read-only (mapped) tensors: do not write. */
void *esp_tensor_data(const esp_tensor *t);
int esp_tensor_readonly(const esp_tensor *t);        /* 1 if it views a mapped file */
/* From now on no operation writes through this header, nor through views made of it: ESP_EARG. The bytes' owner still may. */
void esp_tensor_protect(esp_tensor *t);
int esp_tensor_aligned(const esp_tensor *t);         /* 0 where the bytes of a mapped file do not begin at a multiple of the element's size */
int64_t esp_dtype_size(int dtype);                   /* bytes of an element; -1 for an unknown dtype */
/* yes = 1 if no element of a dense float tensor is NaN or infinite. */
int esp_tensor_finite(int *yes, const esp_tensor *t);

/* f of gate(): x sigmoid(x); x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); max(x, 0)^2 */
enum esp_activation { ESP_SILU = 0, ESP_GELU_TANH = 1, ESP_RELU2 = 2 };

/* ---- operations -------------------------------------------------------------------------------------------------------
 *
 * One list: name, parameters. It expands to the prototypes esp_NAME, to the table type of a backend, and to each backend's table.
 * "rows" below means: last dimension dense, the others collapse to one row stride (a prefix slice of a dense tensor does).
 * Float tensors are f32 unless the comment says more; weights ("w", "b") of linear, bias, embedding and norms may be bf16 (arithmetic stays f32), and
 * so may the rows that bias, norms, rope and gate read and write, each for itself: what is read is widened, what is written is rounded.
 * Outputs must not overlap inputs unless the comment allows it.
 */
#define ESP_OPS(X) \
    /* -- filling, copying, random numbers (any strides) -- */ \
    /* y = value, any dtype */ \
    X(fill, (esp_tensor *y, double value)) \
    /* y = x, converting dtypes (round to nearest even; to i32 and u8: towards zero, saturating); same shape */ \
    X(copy, (esp_tensor *y, const esp_tensor *x)) \
    /* y[i] = uniform in [lo, hi) or normal, by Philox4x32-10: element i (in row-major order) of the sequence (seed, stream) */ \
    X(uniform, (esp_tensor *y, double lo, double hi, uint64_t seed, uint64_t stream)) \
    X(normal, (esp_tensor *y, double mean, double std, uint64_t seed, uint64_t stream)) \
    /* y = x taken at index i32 [n] along axis: y.shape[axis] = n. x f32 or bf16, y of the same dtype; any strides */ \
    X(index_select, (esp_tensor *y, const esp_tensor *x, const esp_tensor *index, int axis)) \
    /* y[r,c] = x[rows[r], columns[c]], converting dtypes; rows, columns i32 [n] or NULL (all). x of two dimensions, any strides, or of one \
     * (rows NULL); y dense */ \
    X(take, (esp_tensor *y, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns)) \
    \
    /* -- linear.c: linear layers. x [..,I] rows, w [O,I], y [..,O] rows. dtype: of the products. In f32 all are f32, but that a weight that is read \
     * may be bf16; in bf16, x, w, y and dy, f32 or bf16 as stored, are rounded to bf16 on their way in, sums are f32, and a result in bf16 is rounded \
     * once. Four rows or fewer are computed in f32 in any case. packed (or NULL): what pack made of w, for a weight that many calls share: w is then \
     * not read -- */ \
    /* y = x w^T */ \
    X(linear, (esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed, int dtype)) \
    /* dx = dy w, dx += dy w */ \
    X(linear_dx, (esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)) \
    X(linear_dx_acc, (esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)) \
    /* dw = dy^T x, dw += dy^T x */ \
    X(linear_dw, (esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)) \
    X(linear_dw_acc, (esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)) \
    /* w [O,I] for linear (inputs = 1) or linear_dx (inputs = 0) of a dtype: packed i32 [ceil(O/32)*32 * ceil(I/per)], or \
     * [ceil(I/32)*32 * ceil(O/per)]; per: 1 in f32, 2 in bf16 */ \
    X(pack, (esp_tensor *packed, const esp_tensor *w, int inputs, int dtype)) \
    \
    /* y[N,O] = x[N,O] + b[O]; y may be x (bias.c) */ \
    X(bias, (esp_tensor *y, const esp_tensor *x, const esp_tensor *b)) \
    \
    /* -- rmsnorm.c, layernorm.c: offset is added to w: 0, or 1 where the weight is stored as what it differs from 1 -- */ \
    /* y[N,C] = x[N,C] * rstd[N] * (w[C] + offset), rstd = 1/sqrt(mean(x^2) + eps); rstd (or NULL) is kept for backward */ \
    X(rmsnorm, (esp_tensor *y, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, double eps, double offset)) \
    /* dx[N,C], dw[C] from dy[N,C]; dw may be NULL */ \
    X(rmsnorm_backward, (esp_tensor *dx, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w, \
                         const esp_tensor *rstd, double offset)) \
    /* y[N,C] = (x[N,C] - mean[N]) * rstd[N] * (w[C] + offset) + b[C], rstd = 1/sqrt(variance + eps); mean and rstd, or both NULL, are kept */ \
    X(layernorm, (esp_tensor *y, esp_tensor *mean, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, const esp_tensor *b, double eps, \
                  double offset)) \
    /* dx[N,C], dw[C], db[C] from dy[N,C]; dw and db may both be NULL */ \
    X(layernorm_backward, (esp_tensor *dx, esp_tensor *dw, esp_tensor *db, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w, \
                           const esp_tensor *mean, const esp_tensor *rstd, double offset)) \
    \
    /* -- rope.c: rotary embedding, rotate-half order (channel c turns with c + D/2) -- */ \
    /* (rope and attention: last dimension dense, any strides before it) \
     * y[B,T,H,D] = x, of whose channels the first R turn by the angles of table rows 0..T-1: cos, sin [>=T, R/2], R <= D; inverse = 1 turns \
     * back (the gradient). y may be x */ \
    X(rope, (esp_tensor *y, const esp_tensor *x, const esp_tensor *cos, const esp_tensor *sin, int inverse)) \
    \
    /* -- attention.c: causal attention with grouped queries, tiled with online softmax; no [T,T] matrix is kept -- */ \
    /* o[B,T,H,D], lse[B,H,T] from q[B,T,H,D], k and v[B,S,G,D], S >= T: query t stands at position S-T+t and sees keys j with \
     * first[b,t] <= j <= S-T+t; first i32 [B,T] or NULL (0): where the document of the query begins. Head h reads group h/(H/G). \
     * lse may be NULL. scale multiplies q.k; where cap is not 0 the score is then cap * tanh(score / cap) (2408.00118) */ \
    X(attention, (esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, \
                  const esp_tensor *first, double scale, double cap)) \
    /* dq, dk, dv from dout and what forward read and wrote; probabilities are computed again tile by tile. S = T */ \
    X(attention_backward, (esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q, \
                           const esp_tensor *k, const esp_tensor *v, const esp_tensor *o, const esp_tensor *lse, \
                           const esp_tensor *first, double scale, double cap)) \
    \
    /* -- activation.c: rows; kind is one of esp_activation -- */ \
    /* y = f(gate) * up; f(gate) where up is NULL */ \
    X(gate, (esp_tensor *y, const esp_tensor *gate, const esp_tensor *up, int kind)) \
    /* dup and up: both or neither */ \
    X(gate_backward, (esp_tensor *dgate, esp_tensor *dup, const esp_tensor *dy, const esp_tensor *gate, const esp_tensor *up, int kind)) \
    /* y = cap * tanh(x / cap), y may be x; dx = dy * (1 - (y / cap)^2), dx may be dy (softcap.c) */ \
    X(softcap, (esp_tensor *y, const esp_tensor *x, double cap)) \
    X(softcap_backward, (esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y, double cap)) \
    \
    /* -- embedding.c: ids i32 [..], y [..,C] rows, w [V,C]; an id outside 0..V-1 is an error that names it -- */ \
    X(embedding, (esp_tensor *y, const esp_tensor *w, const esp_tensor *ids)) \
    X(embedding_dw_acc, (esp_tensor *dw, const esp_tensor *dy, const esp_tensor *ids)) \
    \
    /* -- softmax.c: over the last dimension, rows -- */ \
    X(softmax, (esp_tensor *y, const esp_tensor *x)) \
    X(log_softmax, (esp_tensor *y, const esp_tensor *x)) \
    /* dx = dy - exp(y) * sum(dy) */ \
    X(log_softmax_backward, (esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y)) \
    /* loss[N] = weight[n] * -log softmax(s[n])[target[n]]; ds (or NULL) = its gradient by s. target i32 [N], -1 is left out (loss 0, ds 0); \
     * weight [N]. ds may be s. _acc adds to ds, loss is still overwritten */ \
    X(cross_entropy, (esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target, const esp_tensor *weight)) \
    X(cross_entropy_acc, (esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target, const esp_tensor *weight)) \
    \
    /* -- distill.c -- */ \
    /* loss[N] = weight[n] * KL(softmax(t[n]/tau) || softmax(s[n]/tau)); ds (or NULL) = its gradient by s = weight/tau * (q - p). \
     * s, t [N,V] logits, f32 or bf16. ds may be s, or bf16. No tau^2 factor (Minitron, 2407.14679 section 3). _acc adds to ds, f32 */ \
    X(kl, (esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)) \
    X(kl_acc, (esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)) \
    \
    /* -- elementwise.c: any strides (0 repeats), all arguments of one shape, f32; y may be an input -- */ \
    X(add, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    X(sub, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    X(mul, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    X(div, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    X(pow, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    X(maximum, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    /* y = a < b ? 1 : 0; NaN gives 0 */ \
    X(less, (esp_tensor *y, const esp_tensor *a, const esp_tensor *b)) \
    /* y = cond != 0 ? a : b */ \
    X(where, (esp_tensor *y, const esp_tensor *cond, const esp_tensor *a, const esp_tensor *b)) \
    X(exp, (esp_tensor *y, const esp_tensor *x)) \
    X(log, (esp_tensor *y, const esp_tensor *x)) \
    X(sqrt, (esp_tensor *y, const esp_tensor *x)) \
    X(abs, (esp_tensor *y, const esp_tensor *x)) \
    /* y = alpha * x + beta */ \
    X(affine, (esp_tensor *y, const esp_tensor *x, double alpha, double beta)) \
    /* y += alpha * x */ \
    X(scaled_acc, (esp_tensor *y, const esp_tensor *x, double alpha)) \
    \
    /* -- reduce.c: sums in f64, in an order that depends on the shape alone; x any strides, f32 (sum: f64 too) -- */ \
    /* y = sum of x over axis; y has x's shape without axis, x's dtype */ \
    X(sum, (esp_tensor *y, const esp_tensor *x, int axis)) \
    /* y = largest of x along axis, index i32 (or NULL) where it first stands; NaN is largest */ \
    X(max, (esp_tensor *y, esp_tensor *index, const esp_tensor *x, int axis)) \
    /* y = sqrt(sum of x^2 over axis); dx = dy * x / y, 0 where y = 0 */ \
    X(norm, (esp_tensor *y, const esp_tensor *x, int axis)) \
    X(norm_backward, (esp_tensor *dx, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *y, int axis)) \
    /* y[..,K] = x[..,index[..,K]] along the last dimension; an index outside is an error. scatter_acc: dx[..,index] += dy */ \
    X(gather, (esp_tensor *y, const esp_tensor *x, const esp_tensor *index)) \
    X(scatter_acc, (esp_tensor *dx, const esp_tensor *dy, const esp_tensor *index)) \
    /* the K largest of the last dimension, descending, ties to the lower index: y[..,K], index i32 [..,K] */ \
    X(topk, (esp_tensor *y, esp_tensor *index, const esp_tensor *x)) \
    /* index i32 that sorts the last dimension; stable; NaN last; x f32 or f64 */ \
    X(argsort, (esp_tensor *index, const esp_tensor *x, int descending)) \
    /* total (f64, 0-d) += sum of x, or of x^2; x f32, any shape */ \
    X(total_acc, (esp_tensor *total, const esp_tensor *x)) \
    X(sumsq_acc, (esp_tensor *total, const esp_tensor *x)) \
    \
    /* -- optim.c: the scalars of a step are f64 0-d tensors -- */ \
    /* factor = min(1, max_norm / (sqrt(sumsq) + 1e-6)); 1 where max_norm is 0 */ \
    X(clip_factor, (esp_tensor *factor, const esp_tensor *sumsq, double max_norm)) \
    /* AdamW (1711.05101), decoupled decay: g' = factor g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2; \
     * p = p (1 - lr decay) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps). p, m, v f32 dense, step counts from 1 */ \
    X(adamw, (esp_tensor *p, esp_tensor *m, esp_tensor *v, const esp_tensor *g, const esp_tensor *lr, const esp_tensor *step, \
              const esp_tensor *factor, double beta1, double beta2, double eps, double decay)) \
    \
    /* -- importance.c: statistics f64, added up. Even rows of the data go to half 0, odd rows to half 1: x[b] is row first + b. \
     * lengths i32 [B] or NULL (T): tokens of each row that count. x f32 or bf16, its channels dense -- */ \
    /* stats[2,8,C] += over rows b of x[B,T,C]: sum and sum of squares of mean_t |x|; of sqrt(sum_t x^2); of var_t x (population); \
     * then the sums of x and of |x| over all tokens. From these come the nine batch x seq aggregations (2407.14679 section 2.2) */ \
    X(channel_stats_acc, (esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)) \
    /* the same of f(x), kind one of esp_activation */ \
    X(activation_stats_acc, (esp_tensor *stats, const esp_tensor *x, int kind, const esp_tensor *lengths, int64_t first)) \
    /* the same of the lengths of units: u, `width` neighbouring channels, or root[i]' u where root[units,width,width] is given, lower triangular */ \
    X(unit_stats_acc, (esp_tensor *stats, const esp_tensor *x, const esp_tensor *root, int64_t width, const esp_tensor *lengths, int64_t first)) \
    /* the same of the lengths of pairs that turn together, x[B,T,H,D]: of channels c and c + turning/2, c < turning/2; stats[2,8,H*turning/2] */ \
    X(pair_stats_acc, (esp_tensor *stats, const esp_tensor *x, int64_t turning, const esp_tensor *lengths, int64_t first)) \
    \
    /* -- taylor.c, angles.c: as importance.c -- */ \
    /* stats[2,4,C/width] += of p = sum over `width` neighbouring channels of x g, g the gradient by x[B,T,C]: over tokens the sums of p and of \
     * |p|; over rows the sum of (sum_t p)^2; over tokens the sum of sum g^2 */ \
    X(taylor_stats_acc, (esp_tensor *stats, const esp_tensor *x, const esp_tensor *g, int64_t width, int64_t first)) \
    /* stats[2,3] += of c = cos(a, b), a and b [B,T,C]: over tokens the sums of c and of arccos(c)/pi, over rows that of arccos(c)/pi at the \
     * row's last token. A vector of zeros has c = 0. The halves of stats may lie apart */ \
    X(angle_stats_acc, (esp_tensor *stats, const esp_tensor *a, const esp_tensor *b, const esp_tensor *lengths, int64_t first)) \
    /* the same of all pairs of streams x[L+1,B,T,C]: stats[2,L,L,3], streams i and j, i < j, at [..,i,j-1,..] */ \
    X(stream_stats_acc, (esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)) \
    \
    /* -- contribution.c -- */ \
    /* sums[C] (f64) += over tokens of the length of r + a_c w_c: what leaves an output with column w_c beside the r [..] that left it already. \
     * a[B,T,C], f32 or bf16; rw[B,T,C] = r . w_c; r[B,T] = length of r; w[C] = length of w_c (2411.19146 appendix A, channel after channel) */ \
    X(contribution_acc, (esp_tensor *sums, const esp_tensor *a, const esp_tensor *rw, const esp_tensor *r, const esp_tensor *w, const esp_tensor *lengths)) \
    \
    /* -- gram.c, weightsums.c: of weights w[O,I], f32 or bf16 -- */ \
    /* root[I/width,width,width] (f32, lower triangular): root[i] root[i]' = W' W of the i-th `width` columns W of w, so |root[i]' u| = |W u|. Where \
     * columns depend on others columns of zeros stand */ \
    X(gram_root, (esp_tensor *root, const esp_tensor *w, int64_t width)) \
    /* stats[2,n] (f64) += sums of |w| and of w^2 over an axis: 0 leaves the columns, 1 the rows */ \
    X(weight_sums_acc, (esp_tensor *stats, const esp_tensor *w, int axis)) \
    /* sums[n] (f64) += sum of |w g| over an axis, g the gradient by w */ \
    X(weight_products_acc, (esp_tensor *sums, const esp_tensor *w, const esp_tensor *g, int axis))

#define ESP_PROTOTYPE(name, params) int esp_##name params;
ESP_OPS(ESP_PROTOTYPE)
#undef ESP_PROTOTYPE

/* ---- files --------------------------------------------------------------------------------------------------------------- */

/* A file that appears whole or not at all: written beside its name, synced, renamed, folder synced. */
typedef struct esp_writer esp_writer;
int esp_writer_open(esp_writer **out, const char *path);
int esp_writer_write(esp_writer *w, const void *data, int64_t bytes);
int esp_writer_publish(esp_writer *w);               /* sync, rename, sync folder; frees w, also on error (then nothing is left behind) */
void esp_writer_abandon(esp_writer *w);              /* removes what was written and frees w; NULL is allowed */

/* Whole content of a regular file up to max_bytes (0: 1 GiB); *data ends with a NUL not counted in *bytes; free with esp_buffer_free. */
int esp_file_read(char **data, int64_t *bytes, const char *path, int64_t max_bytes);
void esp_buffer_free(void *data);
/* kind: 0 nothing there, 1 regular file, 2 folder, 3 other. bytes and mtime (seconds) may be NULL. */
int esp_file_stat(const char *path, int *kind, int64_t *bytes, double *mtime);
int esp_folder_make(const char *path);               /* with parents; an existing folder is fine */
/* Names in a folder, sorted, each ended by a newline, without . and .. ; free with esp_buffer_free. */
int esp_folder_list(char **names, int64_t *bytes, const char *path);
int esp_file_remove(const char *path);               /* a file, or a folder with all in it; nothing there is fine */
int esp_file_rename(const char *from, const char *to); /* files or folders; replaces a file or an empty folder; syncs both folders */
int esp_folder_replace(const char *from, const char *to); /* puts a folder in the place of another at once; what was there is removed */
int esp_file_link_or_copy(const char *from, const char *to);
int esp_path_real(char **path, const char *from);    /* absolute, links followed; free with esp_buffer_free */
/* XXH3 128-bit hash as 32 hex digits + NUL in hex[33]. */
int esp_hash(char *hex, const void *data, int64_t bytes);
int esp_hash_file(char *hex, const char *path);

/* The append-only journal of a run: records of bytes, each with length and checksum. Opening for append cuts off a torn last record. */
typedef struct esp_journal esp_journal;
int esp_journal_open(esp_journal **out, const char *path);   /* also takes a lock: a second writer is refused with the first one's pid */
int esp_journal_append(esp_journal *j, const void *data, int64_t bytes, int sync);
int esp_journal_close(esp_journal *j);
/* All whole records of a journal, as {int64 bytes, data} pairs one after another; free with esp_buffer_free. torn: bytes left out at the end. */
int esp_journal_read(char **data, int64_t *bytes, int64_t *torn, const char *path);

/* An exclusive lock on a path (created if missing), held until released or the process ends; refused with the holder's pid. */
typedef struct esp_lock esp_lock;
int esp_lock_take(esp_lock **out, const char *path);
void esp_lock_release(esp_lock *l);

/* ---- child processes ---------------------------------------------------------------------------------------------------------- */

/* Starts argv (NULL-ended; argv[0] is a path) with stdout and stderr appended to `output` (NULL: inherited), stdin empty. */
int esp_process_start(int *pid, const char *const *argv, const char *output);
/* running = 1, or 0 with the exit code (128 + signal number where one ended it). */
int esp_process_poll(int pid, int *running, int *code);
int esp_process_signal(int pid, int signal);
int esp_process_id(void);
int esp_sleep(double seconds);                       /* returns early with ESP_ESTOP when interrupted */
int esp_is_terminal(int fd);
int esp_terminal_width(void);                        /* columns of stdout; 80 where it is no terminal */

/* ---- JSON (yajl) ---------------------------------------------------------------------------------------------------------- */

/* A parsed text as a list of entries in document order: a value, or a key in front of its value; what is in an object or a list follows it.
 * Duplicate keys, NaN, comments, bad UTF-8, more than 256 levels are errors with line and column; `name` stands in the message. */
typedef struct esp_json esp_json;
enum esp_json_kind {
    ESP_JSON_NULL = 0, ESP_JSON_BOOL, ESP_JSON_INT, ESP_JSON_FLOAT, ESP_JSON_STRING, ESP_JSON_KEY, ESP_JSON_OBJECT, ESP_JSON_ARRAY
};
int esp_json_parse(esp_json **out, const char *text, int64_t bytes, const char *name);
int esp_json_read(esp_json **out, const char *path);
int64_t esp_json_count(const esp_json *j);
int esp_json_kind(const esp_json *j, int64_t i);
const char *esp_json_text(const esp_json *j, int64_t i, int64_t *bytes);   /* STRING, KEY: UTF-8; FLOAT: its digits as they stood; "" of others; with a NUL behind */
double esp_json_number(const esp_json *j, int64_t i);      /* INT and FLOAT; BOOL: 0 or 1; NaN of others */
int64_t esp_json_after(const esp_json *j, int64_t i);      /* the entry behind the value i and all that is in it */
int64_t esp_json_items(const esp_json *j, int64_t i);      /* values in the object or list i */
int64_t esp_json_bytes(const esp_json *j);                 /* of memory that the list takes */
void esp_json_free(esp_json *j);

/* ---- safetensors ------------------------------------------------------------------------------------------------------------ */

/* A mapped file whose whole header has been checked (offsets contiguous from 0, sizes equal dtype x shape, nothing after the last byte,
 * names unique). Tensors are read-only views that keep the mapping alive. */
typedef struct esp_safetensors esp_safetensors;
int esp_safetensors_open(esp_safetensors **out, const char *path);
int64_t esp_safetensors_count(const esp_safetensors *s);
int64_t esp_safetensors_bytes(const esp_safetensors *s);                   /* of all tensors */
const char *esp_safetensors_name(const esp_safetensors *s, int64_t i);
const char *esp_safetensors_dtype(const esp_safetensors *s, int64_t i);    /* as in the file: "F32", "BF16" ... */
int esp_safetensors_ndim(const esp_safetensors *s, int64_t i);
const int64_t *esp_safetensors_shape(const esp_safetensors *s, int64_t i);
/* F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I32 and U8 as they are, BOOL as u8: views of the mapped file, which may be unaligned (then only take()
 * reads them). I64, I16, I8, U64, U32 and U16 become i32 where every value fits, else the error names the value. */
int esp_safetensors_tensor(esp_tensor **out, const esp_safetensors *s, int64_t i);
int64_t esp_safetensors_metadata_count(const esp_safetensors *s);
int esp_safetensors_metadata(const esp_safetensors *s, int64_t i, const char **key, const char **value);
void esp_safetensors_close(esp_safetensors *s);

/* A file written tensor by tensor in bounded memory, whole or not at all: names, dtypes and shapes (ndims[i] numbers each, end to end) are the
 * header, then the bytes are appended. f32, bf16, f16, i32, u8, f64. metadata: keys and values by turns. */
typedef struct esp_safetensors_writer esp_safetensors_writer;
int esp_safetensors_create(esp_safetensors_writer **out, const char *path, int64_t count, const char *const *names, const int *dtypes,
                           const int *ndims, const int64_t *shapes, int64_t metadata_count, const char *const *metadata);
/* The next rows of tensor i (in order): x taken at rows and columns as take() does, converted to the tensor's dtype, at most 16 MiB or one row at a
 * time. A tensor may come in several pieces, one below the other. finite = 1 refuses NaN and infinity after the conversion. */
int esp_safetensors_append(esp_safetensors_writer *w, int64_t i, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns, int finite);
int esp_safetensors_publish(esp_safetensors_writer *w);   /* frees w, also on error (a tensor that is not full, a full disk): then nothing is left behind */
void esp_safetensors_abandon(esp_safetensors_writer *w);

/* ---- GGUF ---------------------------------------------------------------------------------------------------------------------- */

/* A mapped file of llama.cpp, version 2 or 3, whose whole directory has been checked: lengths fit the file, keys and names are unique,
 * tensors follow each other at multiples of general.alignment, nothing stands behind the last. Tensors keep the mapping alive. */
typedef struct esp_gguf esp_gguf;
enum esp_gguf_kind {
    ESP_GGUF_U8 = 0, ESP_GGUF_I8, ESP_GGUF_U16, ESP_GGUF_I16, ESP_GGUF_U32, ESP_GGUF_I32, ESP_GGUF_F32, ESP_GGUF_BOOL, ESP_GGUF_STRING,
    ESP_GGUF_ARRAY, ESP_GGUF_U64, ESP_GGUF_I64, ESP_GGUF_F64
};
int esp_gguf_open(esp_gguf **out, const char *path);
int esp_gguf_version(const esp_gguf *g);
int64_t esp_gguf_key_count(const esp_gguf *g);
const char *esp_gguf_key(const esp_gguf *g, int64_t i);
/* The checked bytes of a value, in the file: `count` elements of kind `type`, little endian, unaligned; a text is its length (u64) and its bytes. */
const void *esp_gguf_value(const esp_gguf *g, int64_t i, int *type, int *is_array, int64_t *count);
int64_t esp_gguf_count(const esp_gguf *g);
const char *esp_gguf_name(const esp_gguf *g, int64_t i);
const char *esp_gguf_type(const esp_gguf *g, int64_t i);                  /* "F32", "Q8_0", "Q4_K" ... */
int esp_gguf_ndim(const esp_gguf *g, int64_t i);
const int64_t *esp_gguf_shape(const esp_gguf *g, int64_t i);              /* rows first, the dense dimension last */
/* F32, F16, BF16, F64 and I32 as they are (mapped where aligned, else copied), Q8_0 as new f32; other types are refused. */
int esp_gguf_tensor(esp_tensor **out, const esp_gguf *g, int64_t i);
void esp_gguf_close(esp_gguf *g);
/* Q8_0: blocks u8 (34 bytes for 32 numbers) from numbers f32 [.., C] and back; both dense, C a multiple of 32. The bytes are those that llama.cpp's
 * reference makes. */
int esp_q8_pack(esp_tensor *blocks, const esp_tensor *numbers);
int esp_q8_unpack(esp_tensor *numbers, const esp_tensor *blocks);

/* ---- tokenizers -------------------------------------------------------------------------------------------------------------- */

/* Immutable once loaded: any number of threads may encode and decode with one tokenizer at the same time. */
typedef struct esp_tokenizer esp_tokenizer;
/* kind is found from name and content: tokenizer.json, sentencepiece .model, tiktoken's ranks, llama2.c .bin. vocab: rows of a llama2.c .bin (it does not store
 * their number; 0 otherwise). */
int esp_tokenizer_load(esp_tokenizer **out, const char *path, int64_t vocab);
/* The same of bytes that are such a file's; name stands for its path: its ending decides and it stands in messages. */
int esp_tokenizer_parse(esp_tokenizer **out, const char *data, int64_t bytes, const char *name, int64_t vocab);
void esp_tokenizer_free(esp_tokenizer *t);
int64_t esp_tokenizer_vocab(const esp_tokenizer *t);                 /* ids are 0..vocab-1 */
const char *esp_tokenizer_kind(const esp_tokenizer *t);              /* "byte-level BPE", "byte-fallback BPE", "unigram" (tokenizer.json), "sentencepiece", "tiktoken", "llama2c" */
int esp_tokenizer_special(const esp_tokenizer *t, const char *name); /* id of "bos", "eos", "unk", "pad"; -1 if there is none */
enum esp_piece_type { ESP_PIECE_NORMAL = 1, ESP_PIECE_UNKNOWN, ESP_PIECE_CONTROL, ESP_PIECE_USER, ESP_PIECE_UNUSED, ESP_PIECE_BYTE };
/* The piece of an id as stored (bytes in *bytes), NULL outside the vocabulary; score and type may be NULL. */
const char *esp_tokenizer_piece(const esp_tokenizer *t, int32_t id, int64_t *bytes, float *score, int *type);
int32_t esp_tokenizer_id(const esp_tokenizer *t, const char *piece, int64_t bytes);  /* -1 if there is none */
/* Merges in the order of their ranks: rank r joins pieces left and right. 0 of them where pieces merge by score. */
int64_t esp_tokenizer_merges(const esp_tokenizer *t);
void esp_tokenizer_merge(const esp_tokenizer *t, int64_t rank, int32_t *left, int32_t *right);
int esp_tokenizer_unigram(const esp_tokenizer *t);                   /* 1: it finds the likeliest pieces; 0: it merges pairs */
/* What GGUF calls the way this tokenizer cuts words ("llama-bpe", "gpt-2", "qwen2" ...); "" where it has no name for it. */
const char *esp_tokenizer_pre(const esp_tokenizer *t);
/* What the post-processor puts before (after = 0) or behind (1) a text: count ids. */
const int32_t *esp_tokenizer_frame(const esp_tokenizer *t, int after, int64_t *count);
/* ids of a text, which must be UTF-8, no BOS added; special = 1 lets added special tokens in the text be found. Free with esp_buffer_free. */
int esp_tokenizer_encode(int32_t **ids, int64_t *count, const esp_tokenizer *t, const char *text, int64_t bytes, int special);
/* The same into the caller's buffer of `room` ids; count is how many there are. Where they do not fit, nothing is written, count
 * says how many there would be and ESP_ESHAPE is returned. */
int esp_tokenizer_encode_into(int32_t *ids, int64_t room, int64_t *count, const esp_tokenizer *t, const char *text, int64_t bytes, int special);
/* Text of ids; special = 0 leaves out control tokens. first = 1: a text begins here (sentencepiece then drops the dummy space). Free with esp_buffer_free. */
int esp_tokenizer_decode(char **text, int64_t *bytes, const esp_tokenizer *t, const int32_t *ids, int64_t count, int special, int first);

/* ---- documents: text and JSON lines on their way to ids ---------------------------------------------------------------------- */

/* A file cut into pieces at a separator ("" cuts nowhere), read in memory that does not grow with the file. Pieces are trimmed of white space,
 * empty ones and a byte order mark at the start are left out; a piece of more than 1 GiB is an error. */
typedef struct esp_reader esp_reader;
int esp_reader_open(esp_reader **out, const char *path, const char *separator, int64_t separator_bytes);
/* The next pieces, about `bytes` of them in all, one at least; *count is 0 at the end. Piece i is text[ranges[2 i]] to text[ranges[2 i + 1]] and
 * the numbers[i]-th of the file, from 1. All of it is valid until the next call. */
int esp_reader_next(esp_reader *r, int64_t bytes, const char **text, const int64_t **ranges, const int64_t **numbers, int64_t *count);
int64_t esp_reader_at(const esp_reader *r);          /* bytes of the file that were given out */
void esp_reader_close(esp_reader *r);

enum esp_document_kind {
    ESP_DOCUMENT_TEXT = 0,    /* the piece itself */
    ESP_DOCUMENT_FIELD,       /* JSON: the text at `field` */
    ESP_DOCUMENT_ANSWER,      /* JSON: the texts at `field` (the prompt, not counted) and at `answer`, one after the other */
    ESP_DOCUMENT_MESSAGES     /* JSON: the list of {role, content} at `field`; those of the role `answer` are counted */
};

/* How a piece becomes a document. A field may name a place inside objects, as in "a.b". */
typedef struct esp_document_rule {
    int kind;
    const char *name;         /* of the file, for messages */
    const char *field, *answer;
    const char *before, *after; /* of each message; {role} in them stands for its role. `after` is counted where the content is */
    int32_t bos, eos;         /* ids put in front and behind; -1: none */
    int special;              /* 1: special tokens written in the text are found */
} esp_document_rule;

/* Documents one after another. Without a tokenizer: their texts. */
typedef struct esp_encoded {
    int64_t documents, tokens;
    int32_t *ids;             /* [tokens] */
    uint8_t *counted;         /* [tokens], 1 where the loss counts a token; NULL where it counts all */
    char *text;
    int64_t *lengths;         /* [documents]: tokens of each; without a tokenizer bytes */
    uint64_t *hashes;         /* [documents]: esp_hash64 of each text */
} esp_encoded;

/* Makes documents of pieces, many at a time; t may be NULL. The ids of a document are those of its whole text; a token that spans the border
 * between what is counted and what is not belongs to what follows. Errors name the file and the piece; the first bad piece is the one named.
 * Free with esp_encoded_free. */
int esp_documents_encode(esp_encoded *out, const esp_tokenizer *t, const char *text, const int64_t *ranges, const int64_t *numbers, int64_t count,
                         const esp_document_rule *rule);
void esp_encoded_free(esp_encoded *e);

/* The upper half of the 128-bit XXH3. */
uint64_t esp_hash64(const void *data, int64_t bytes);
/* The first entry of b that is also in a, or -1. Errors: ESP_EMEM. */
int esp_hashes_meet(int64_t *at, const uint64_t *a, int64_t na, const uint64_t *b, int64_t nb);

/* Where index i of 0..n-1 goes in the permutation (seed, stream): a Feistel network over Philox that walks its cycle back into 0..n-1, so that
 * no array is made. n up to 2^52. */
int64_t esp_permute(int64_t i, int64_t n, uint64_t seed, uint64_t stream);

/* A Megatron pair PREFIX.bin (ids) and PREFIX.idx (lengths, documents), mapped; every count, length and pointer is checked against both files. */
typedef struct esp_megatron esp_megatron;
int esp_megatron_open(esp_megatron **out, const char *bin, const char *idx);
int64_t esp_megatron_documents(const esp_megatron *m);
const char *esp_megatron_dtype(const esp_megatron *m);
/* offsets[documents + 1]: the first token of each document, then the number of tokens. */
void esp_megatron_offsets(const esp_megatron *m, double *offsets);
/* Tokens at, at+1, .. at+n-1; an id that is negative or beyond 2^31-1 is an error. */
int esp_megatron_read(int32_t *ids, const esp_megatron *m, int64_t at, int64_t n);
void esp_megatron_close(esp_megatron *m);

/* ---- HDF5 (in libespalier-hdf5, loaded when first needed) ------------------------------------------------------------------------ */

typedef struct esp_h5 esp_h5;
const char *esp_h5_checksum(void);                   /* of the header that this library was built with */
/* A new file, written beside its name; it appears on publish. Each dataset carries its XXH3 in the attribute "xxh3". */
int esp_h5_create(esp_h5 **out, const char *path);
/* A dataset at "group/name" (groups are made), dense, of the tensor's shape; bf16 and f16 are stored as u16 with the attribute "dtype". packed: shuffled
 * and deflated, which every reader of HDF5 undoes. */
int esp_h5_write(esp_h5 *f, const char *name, const esp_tensor *t, int packed);
int esp_h5_write_text(esp_h5 *f, const char *name, const char *text, int64_t bytes);
int esp_h5_publish(esp_h5 *f);                       /* frees f, also on error (then nothing is left behind) */
/* An existing file, read-only. Reading a dataset checks its xxh3 where it has one. */
int esp_h5_open(esp_h5 **out, const char *path);
int esp_h5_names(char **names, int64_t *bytes, esp_h5 *f);           /* every dataset's full name, sorted, newline-ended; esp_buffer_free */
int esp_h5_read(esp_tensor **out, esp_h5 *f, const char *name);      /* i64 becomes f64 (exact below 2^53, else an error); u16 without attribute becomes i32 */
int esp_h5_read_text(char **text, int64_t *bytes, esp_h5 *f, const char *name);
/* Datasets too long for memory, 1-d: grown at the end, in chunks that HDF5 checks by Fletcher32, and read piecewise. kind of the numbers in
 * memory: "i32", "u8", "u64", "f64"; stored: "u8", "u16", "i32", "i64", "u64" (a number outside of it is clamped). */
int esp_h5_grow(esp_h5 *f, const char *name, const char *stored, const char *kind, const void *data, int64_t count);
int esp_h5_read_part(esp_h5 *f, const char *name, const char *kind, int64_t at, int64_t count, void *data);
/* Length of a 1-d dataset of integers, -1 where there is none of that name; any other dataset is an error. */
int esp_h5_length(esp_h5 *f, const char *name, int64_t *count);
/* A dataset without its numbers: its shape (1 to 6 dimensions; 0 is a scalar) and its element type as in "u16" or "f32". */
int esp_h5_describe(esp_h5 *f, const char *name, int *ndim, int64_t *shape, char dtype[8]);
/* Attributes of the file itself. Texts and integers are read back as text; *text is NULL where there is none (esp_buffer_free). */
int esp_h5_set_text(esp_h5 *f, const char *name, const char *text);
int esp_h5_set_integer(esp_h5 *f, const char *name, int64_t value);
int esp_h5_get(char **text, esp_h5 *f, const char *name);
void esp_h5_close(esp_h5 *f);                        /* closes; a file not published is removed; NULL is allowed */

#endif
