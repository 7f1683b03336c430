/* HDF5: tokens, statistics, checkpoints and run records. The only file that includes hdf5.h, in a library of its own that is opened when first
 * needed.
 *
 * HDF5 itself never syncs and leaves a broken file when it is killed, so a file is written beside its name, closed, synced and renamed. Each
 * dataset carries the XXH3 of its bytes, checked when it is read. */
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "../tensor/tensor.h"
#include "io.h"

enum { MOST_LONG = 8, CHUNK_BYTES = 1 << 16, LARGE_CHUNK = 1 << 22, WORTH_PACKING = 1 << 10, DEFLATE_LEVEL = 6 };

/* A dataset that is written or read piecewise and so stays open. */
typedef struct long_set {
    char name[32];
    hid_t set;
    int64_t count;
} long_set;

struct esp_h5 {
    hid_t file;
    char *path, *temporary;                /* temporary: NULL for a file that is read */
    long_set sets[MOST_LONG];
    int open_sets;
};

/* HDF5 prints its error stack and closes files in an exit handler (which crashes on a full disk) unless told otherwise. */
static void begin(void)
{
    static int begun;
    if (begun) return;
    begun = 1;
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

enum { REASON = 400 };

static herr_t deepest(unsigned n, const H5E_error2_t *e, void *text)
{
    (void)n;
    snprintf(text, REASON, "%s", e->desc ? e->desc : "no reason given");
    return 0;
}

static int h5_fail(const char *what, const char *path, const char *name)
{
    char reason[REASON] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, deepest, reason);
    H5Eclear2(H5E_DEFAULT);
    /* Of what the system refused it tells time, addresses and sizes; the system's own word is inside. */
    char *said = strstr(reason, "error message = '");
    said = said ? said + strlen("error message = '") : reason;
    said[strcspn(said, said == reason ? "\n" : "'\n")] = 0;
    return esp_fail(ESP_EIO, "%s %s%s%s: HDF5: %s", what, path, name ? ": " : "", name ? name : "", said);
}

static hid_t access_list(void)
{
    hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
    H5Pset_libver_bounds(list, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
    return list;
}

static void free_file(esp_h5 *f)
{
    esp_free(f->path);
    esp_free(f->temporary);
    esp_free(f);
}

int esp_h5_create(esp_h5 **out, const char *path)
{
    begin();
    esp_h5 *f = esp_calloc(sizeof *f);
    if (!f) return ESP_EMEM;
    f->path = esp_copy_text(path);
    f->temporary = esp_beside(path);
    if (!f->path || !f->temporary) {
        free_file(f);
        return ESP_EMEM;
    }
    hid_t list = access_list(), root = H5Pcreate(H5P_FILE_CREATE);
    /* Attributes stay in the header, which has a checksum: beyond eight HDF5 would move them to where none is. No times: the same content makes
     * the same bytes. */
    H5Pset_attr_phase_change(root, 64, 32);
    H5Pset_obj_track_times(root, 0);
    f->file = H5Fcreate(f->temporary, H5F_ACC_TRUNC, root, list);
    /* Every call that succeeds forgets why the one before it failed. */
    int code = f->file < 0 ? h5_fail("cannot write", path, NULL) : ESP_OK;
    H5Pclose(root);
    H5Pclose(list);
    if (code != ESP_OK) {
        unlink(f->temporary);
        free_file(f);
        return code;
    }
    *out = f;
    return ESP_OK;
}

static hid_t type_of(int dtype)
{
    switch (dtype) {
    case ESP_F32: return H5T_IEEE_F32LE;
    case ESP_F64: return H5T_IEEE_F64LE;
    case ESP_I32: return H5T_STD_I32LE;
    case ESP_U8: return H5T_STD_U8LE;
    default: return H5T_STD_U16LE;         /* bf16 and f16, told apart by the attribute "dtype" */
    }
}

static int put_attribute(hid_t on, const char *name, const char *text)
{
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(text) + 1);
    hid_t a = H5Acreate2(on, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    int good = a >= 0 && H5Awrite(a, type, text) >= 0;
    if (a >= 0) H5Aclose(a);
    H5Sclose(space);
    H5Tclose(type);
    return good;
}

/* The text of an attribute; "" where there is none. */
static void get_attribute(char *text, size_t size, hid_t on, const char *name)
{
    text[0] = 0;
    if (H5Aexists(on, name) <= 0) return;
    hid_t a = H5Aopen(on, name, H5P_DEFAULT), type = H5Aget_type(a);
    /* Ours are stored with their NUL; a foreign one may come without. */
    size_t n = H5Tget_size(type);
    if (H5Tget_class(type) == H5T_STRING && n <= size && H5Aread(a, type, text) >= 0) text[n < size ? n : size - 1] = 0;
    else text[0] = 0;
    H5Tclose(type);
    H5Aclose(a);
}

static void sum_text(char *hex, const void *data, int64_t bytes)
{
    snprintf(hex, 17, "%016llx", (unsigned long long)XXH3_64bits(data, (size_t)bytes));
}

/* Packed: the bytes of a number apart from those of its neighbours (their exponents are alike), then deflate; in chunks of whole leading indices. */
static void set_packing(hid_t how, int ndim, const hsize_t *dims, int64_t bytes)
{
    hsize_t chunk[ESP_MAX_DIMS];
    memcpy(chunk, dims, sizeof(hsize_t) * (size_t)ndim);
    for (int d = 0; d < ndim && bytes > LARGE_CHUNK; d++) {
        bytes /= (int64_t)chunk[d];
        chunk[d] = 1;
    }
    H5Pset_chunk(how, ndim, chunk);
    H5Pset_shuffle(how);
    H5Pset_deflate(how, DEFLATE_LEVEL);
}

static int write_dataset(esp_h5 *f, const char *name, hid_t type, int ndim, const int64_t *shape, const void *data, int64_t bytes, const char *dtype,
                         int packed)
{
    hsize_t dims[ESP_MAX_DIMS];
    for (int d = 0; d < ndim; d++) dims[d] = (hsize_t)shape[d];
    hid_t space = ndim ? H5Screate_simple(ndim, dims, NULL) : H5Screate(H5S_SCALAR);
    hid_t links = H5Pcreate(H5P_LINK_CREATE), how = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    /* A build of HDF5 may lack zlib; the file is then larger. */
    if (packed && ndim && bytes >= WORTH_PACKING && H5Zfilter_avail(H5Z_FILTER_DEFLATE) > 0) set_packing(how, ndim, dims, bytes);
    hid_t set = H5Dcreate2(f->file, name, type, space, links, how, H5P_DEFAULT);
    char hex[17];
    sum_text(hex, data, bytes);
    int good = set >= 0 && (bytes == 0 || H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0) && put_attribute(set, "xxh3", hex) &&
               (!dtype || put_attribute(set, "dtype", dtype));
    int code = good ? ESP_OK : h5_fail("cannot write", f->path, name);
    /* Packed chunks reach the file when their dataset is closed. */
    if (set >= 0 && H5Dclose(set) < 0 && code == ESP_OK) code = h5_fail("cannot write", f->path, name);
    H5Pclose(how);
    H5Pclose(links);
    H5Sclose(space);
    return code;
}

int esp_h5_write(esp_h5 *f, const char *name, const esp_tensor *t, int packed)
{
    TRY(esp_check("hdf5", name, t, 63u, ESP_READ));
    esp_tensor *dense = NULL;
    if (!esp_is_dense(t)) {
        TRY(esp_tensor_new(&dense, t->dtype, t->ndim, t->shape));
        int code = esp_copy(dense, t);
        if (code != ESP_OK) {
            esp_tensor_free(dense);
            return code;
        }
        t = dense;
    }
    const char *dtype = t->dtype == ESP_BF16 ? "bf16" : t->dtype == ESP_F16 ? "f16" : NULL;
    int code = write_dataset(f, name, type_of(t->dtype), t->ndim, t->shape, esp_tensor_at(t), t->count * esp_dtype_size(t->dtype), dtype, packed);
    esp_tensor_free(dense);
    return code;
}

int esp_h5_write_text(esp_h5 *f, const char *name, const char *text, int64_t bytes)
{
    return write_dataset(f, name, H5T_STD_U8LE, 1, &bytes, text, bytes, "text", 0);
}

/* Chunks reach the file when their dataset is closed: a full disk may show only here. */
static int close_long_sets(esp_h5 *f)
{
    int code = ESP_OK;
    for (int i = 0; i < f->open_sets; i++) {
        if (H5Dclose(f->sets[i].set) < 0 && code == ESP_OK) code = h5_fail("cannot write", f->path, f->sets[i].name);
    }
    f->open_sets = 0;
    return code;
}

int esp_h5_publish(esp_h5 *f)
{
    int code = close_long_sets(f);
    if (H5Fclose(f->file) < 0 && code == ESP_OK) code = h5_fail("cannot write", f->path, NULL);
    int fd = code == ESP_OK ? open(f->temporary, O_RDONLY | O_CLOEXEC) : -1;
    if (code == ESP_OK && (fd < 0 || fsync(fd) != 0)) code = esp_io_fail("cannot sync", f->path);
    if (fd >= 0) close(fd);
    if (code == ESP_OK && rename(f->temporary, f->path) != 0) code = esp_io_fail("cannot put in place", f->path);
    if (code == ESP_OK) code = esp_sync_folder_of(f->path);
    else unlink(f->temporary);
    free_file(f);
    return code;
}

int esp_h5_open(esp_h5 **out, const char *path)
{
    begin();
    if (access(path, R_OK) != 0) return esp_io_fail("cannot read", path);
    hid_t list = access_list();
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, list);
    int code = file < 0 ? h5_fail("cannot read", path, NULL) : ESP_OK;
    H5Pclose(list);
    TRY(code);
    esp_h5 *f = esp_calloc(sizeof *f);
    if (!f || !(f->path = esp_copy_text(path))) {
        esp_free(f);
        H5Fclose(file);
        return ESP_EMEM;
    }
    f->file = file;
    *out = f;
    return ESP_OK;
}

void esp_h5_close(esp_h5 *f)
{
    if (!f) return;
    close_long_sets(f);
    H5Fclose(f->file);
    if (f->temporary) unlink(f->temporary);
    free_file(f);
}

/* ---- listing ---- */

typedef struct listing {
    char *text;
    int64_t used, room;
    int failed;
} listing;

static herr_t visit(hid_t at, const char *name, const H5O_info_t *info, void *context)
{
    (void)at;
    listing *l = context;
    if (info->type != H5O_TYPE_DATASET) return 0;
    int64_t n = (int64_t)strlen(name) + 1;
    if (l->used + n + 1 > l->room) {
        char *more = esp_realloc(l->text, 2 * (l->room + n));
        if (!more) {
            l->failed = 1;
            return -1;
        }
        l->text = more;
        l->room = 2 * (l->room + n);
    }
    l->used += sprintf(l->text + l->used, "%s\n", name);
    return 0;
}

int esp_h5_names(char **names, int64_t *bytes, esp_h5 *f)
{
    listing l = {.room = 256};
    if (!(l.text = esp_malloc(l.room))) return ESP_EMEM;
    l.text[0] = 0;
    /* The version of H5Ovisit that fills less is quicker, and both HDF5 1.10 and later have it. */
    if (H5Ovisit2(f->file, H5_INDEX_NAME, H5_ITER_INC, visit, &l, H5O_INFO_BASIC) < 0) {
        esp_free(l.text);
        return l.failed ? ESP_EMEM : h5_fail("cannot list", f->path, NULL);
    }
    *names = l.text;
    *bytes = l.used;
    return ESP_OK;
}

/* ---- reading ---- */

typedef struct opened {
    hid_t set, type, space;
    int ndim;
    int64_t shape[ESP_MAX_DIMS], count, size;
    char dtype[8], xxh3[17];
} opened;

static void close_set(opened *o)
{
    if (o->space >= 0) H5Sclose(o->space);
    if (o->type >= 0) H5Tclose(o->type);
    if (o->set >= 0) H5Dclose(o->set);
}

/* Can the stored bytes of a dataset be what it claims to hold? A damaged or hostile header may claim any size, which is refused before memory is
 * asked for; deflate, the densest of filters, packs a thousand bytes into one. */
static int held(hid_t set, hsize_t count, hsize_t size)
{
    hid_t how = H5Dget_create_plist(set);
    hsize_t most = H5Pget_nfilters(how) > 0 ? 1100 : 1;
    H5Pclose(how);
    return count / most <= H5Dget_storage_size(set) / size;
}

static int open_set(opened *o, esp_h5 *f, const char *name)
{
    *o = (opened){.set = -1, .type = -1, .space = -1};
    o->set = H5Dopen2(f->file, name, H5P_DEFAULT);
    if (o->set < 0) return h5_fail("cannot read", f->path, name);
    o->type = H5Dget_type(o->set);
    o->space = H5Dget_space(o->set);
    o->ndim = H5Sget_simple_extent_ndims(o->space);
    if (o->ndim < 0 || o->ndim > ESP_MAX_DIMS) return esp_fail(ESP_EFORMAT, "%s: %s has %d dimensions, at most %d are read", f->path, name, o->ndim, (int)ESP_MAX_DIMS);
    hsize_t dims[ESP_MAX_DIMS];
    H5Sget_simple_extent_dims(o->space, dims, NULL);
    o->count = 1;
    for (int d = 0; d < o->ndim; d++) {
        o->shape[d] = (int64_t)dims[d];
        if (__builtin_mul_overflow(o->count, o->shape[d], &o->count)) return esp_fail(ESP_EFORMAT, "%s: %s has more elements than can be counted", f->path, name);
    }
    o->size = (int64_t)H5Tget_size(o->type);
    get_attribute(o->dtype, sizeof o->dtype, o->set, "dtype");
    get_attribute(o->xxh3, sizeof o->xxh3, o->set, "xxh3");
    return ESP_OK;
}

/* The dtype of ours that a dataset's elements are; -1 for 64-bit integers, -2 for what is not read. */
static int stored_dtype(const opened *o)
{
    H5T_class_t class = H5Tget_class(o->type);
    if (class == H5T_FLOAT) return o->size == 4 ? ESP_F32 : o->size == 8 ? ESP_F64 : o->size == 2 ? ESP_F16 : -2;
    if (class != H5T_INTEGER) return -2;
    if (strcmp(o->dtype, "bf16") == 0 && o->size == 2) return ESP_BF16;
    if (strcmp(o->dtype, "f16") == 0 && o->size == 2) return ESP_F16;
    if (o->size == 1) return H5Tget_sign(o->type) == H5T_SGN_NONE ? ESP_U8 : ESP_I32;
    return o->size == 2 || (o->size == 4 && H5Tget_sign(o->type) != H5T_SGN_NONE) ? ESP_I32 : -1;
}

static int check_sum(const opened *o, const esp_h5 *f, const char *name, const void *data, int64_t bytes)
{
    char hex[17];
    if (!o->xxh3[0]) return ESP_OK;
    sum_text(hex, data, bytes);
    if (strcmp(hex, o->xxh3) == 0) return ESP_OK;
    return esp_fail(ESP_EFORMAT, "%s: %s is damaged: its bytes have the checksum %s, want %s", f->path, name, hex, o->xxh3);
}

static int read_into(const opened *o, esp_h5 *f, const char *name, esp_tensor *t, int dtype)
{
    hid_t memory = dtype == ESP_BF16 || dtype == ESP_F16 ? H5T_NATIVE_USHORT : dtype == -1 ? H5T_NATIVE_DOUBLE : type_of(t->dtype);
    if (t->count && H5Dread(o->set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, esp_tensor_at(t)) < 0) return h5_fail("cannot read", f->path, name);
    if (dtype == -1) {
        const double *v = esp_tensor_at(t);
        for (int64_t i = 0; i < t->count; i++) {
            if (!(v[i] < 9007199254740992.0 && v[i] > -9007199254740992.0)) return esp_fail(ESP_EFORMAT, "%s: %s holds %.0f, which a double does not hold exactly", f->path, name, v[i]);
        }
        return ESP_OK;
    }
    return esp_dtype_size(t->dtype) == o->size ? check_sum(o, f, name, esp_tensor_at(t), t->count * o->size) : ESP_OK;
}

int esp_h5_read(esp_tensor **out, esp_h5 *f, const char *name)
{
    opened o;
    esp_tensor *t = NULL;
    int code = open_set(&o, f, name);
    int dtype = code == ESP_OK ? stored_dtype(&o) : 0;
    if (code == ESP_OK && dtype == -2) code = esp_fail(ESP_EFORMAT, "%s: %s has elements of a kind that is not read", f->path, name);
    if (code == ESP_OK && o.xxh3[0] && !held(o.set, (hsize_t)o.count, (hsize_t)o.size)) {
        code = esp_fail(ESP_EFORMAT, "%s: %s claims %lld elements, fewer bytes are stored", f->path, name, (long long)o.count);
    }
    if (code == ESP_OK) code = esp_tensor_new(&t, dtype == -1 ? ESP_F64 : dtype, o.ndim, o.shape);
    if (code == ESP_OK) code = read_into(&o, f, name, t, dtype);
    close_set(&o);
    if (code != ESP_OK) esp_tensor_free(t);
    else *out = t;
    return code;
}

int esp_h5_read_text(char **text, int64_t *bytes, esp_h5 *f, const char *name)
{
    esp_tensor *t;
    TRY(esp_h5_read(&t, f, name));
    int code = t->dtype == ESP_U8 ? ESP_OK : esp_fail(ESP_EFORMAT, "%s: %s is %s, want a text", f->path, name, esp_dtype_name(t->dtype));
    char *copy = code == ESP_OK ? esp_malloc(t->count + 1) : NULL;
    if (copy) {
        memcpy(copy, esp_tensor_at(t), (size_t)t->count);
        copy[t->count] = 0;
        *text = copy;
        *bytes = t->count;
    } else if (code == ESP_OK) {
        code = ESP_EMEM;
    }
    esp_tensor_free(t);
    return code;
}

/* ---- datasets too long for memory ---- */

static hid_t number_type(const char *kind)
{
    return strcmp(kind, "u8") == 0    ? H5T_STD_U8LE
           : strcmp(kind, "u16") == 0 ? H5T_STD_U16LE
           : strcmp(kind, "i32") == 0 ? H5T_STD_I32LE
           : strcmp(kind, "i64") == 0 ? H5T_STD_I64LE
           : strcmp(kind, "u64") == 0 ? H5T_STD_U64LE
           : strcmp(kind, "f64") == 0 ? H5T_IEEE_F64LE
                                      : -1;
}

static hid_t create_growing(const esp_h5 *f, const char *name, hid_t type)
{
    hsize_t none = 0, limit = H5S_UNLIMITED, chunk = CHUNK_BYTES / H5Tget_size(type);
    hid_t space = H5Screate_simple(1, &none, &limit), how = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(how, 1, &chunk);
    H5Pset_fletcher32(how);
    H5Pset_obj_track_times(how, 0);
    H5Pset_fill_time(how, H5D_FILL_TIME_NEVER);
    hid_t set = H5Dcreate2(f->file, name, type, space, H5P_DEFAULT, how, H5P_DEFAULT);
    H5Pclose(how);
    H5Sclose(space);
    return set;
}

/* The open dataset of that name; opens it, or with a type makes it. 0 in *out where the file has none of that name. */
static int long_set_of(long_set **out, esp_h5 *f, const char *name, hid_t create)
{
    *out = NULL;
    for (int i = 0; i < f->open_sets; i++) if (strcmp(f->sets[i].name, name) == 0) *out = &f->sets[i];
    if (*out) return ESP_OK;
    if (create == 0 && H5Lexists(f->file, name, H5P_DEFAULT) <= 0) return ESP_OK;
    if (f->open_sets == MOST_LONG || strlen(name) >= sizeof f->sets[0].name) return esp_fail(ESP_EARG, "%s: %s: at most %d datasets of short names grow at once", f->path, name, (int)MOST_LONG);
    hid_t set = create ? create_growing(f, name, create) : H5Dopen2(f->file, name, H5P_DEFAULT);
    if (set < 0) return h5_fail(create ? "cannot write" : "cannot read", f->path, name);
    hid_t space = H5Dget_space(set), type = H5Dget_type(set);
    hsize_t count = 0;
    int ndim = H5Sget_simple_extent_ndims(space), integers = H5Tget_class(type) == H5T_INTEGER;
    if (ndim == 1) H5Sget_simple_extent_dims(space, &count, NULL);
    int fits = create || held(set, count, H5Tget_size(type));
    H5Tclose(type);
    H5Sclose(space);
    if (!fits) {
        H5Dclose(set);
        return esp_fail(ESP_EFORMAT, "%s: %s claims %lld numbers, more than its bytes in the file can hold", f->path, name, (long long)count);
    }
    if (ndim != 1 || !integers || count > (hsize_t)1 << 52) {
        H5Dclose(set);
        return esp_fail(ESP_EFORMAT, "%s: %s has %d dimensions%s, want one list of integers", f->path, name, ndim, integers ? "" : " of no integers");
    }
    *out = &f->sets[f->open_sets++];
    snprintf((*out)->name, sizeof (*out)->name, "%s", name);
    (*out)->set = set;
    (*out)->count = (int64_t)count;
    return ESP_OK;
}

/* Selects count numbers from `at` in the file: the space of the file, and one of memory in *memory. */
static hid_t select_part(hid_t *memory, hid_t set, int64_t at, int64_t count)
{
    hsize_t start = (hsize_t)at, n = (hsize_t)count;
    hid_t space = H5Dget_space(set);
    *memory = H5Screate_simple(1, &n, NULL);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &n, NULL);
    return space;
}

int esp_h5_grow(esp_h5 *f, const char *name, const char *stored, const char *kind, const void *data, int64_t count)
{
    hid_t type = number_type(stored), from = number_type(kind), memory;
    if (type < 0 || from < 0) return esp_fail(ESP_EARG, "hdf5: %s of %s, want u8, u16, i32, i64, u64 or f64", stored, kind);
    long_set *s;
    TRY(long_set_of(&s, f, name, type));
    if (count == 0) return ESP_OK;
    hsize_t total = (hsize_t)(s->count + count);
    if (H5Dset_extent(s->set, &total) < 0) return h5_fail("cannot write", f->path, name);
    hid_t space = select_part(&memory, s->set, s->count, count);
    int good = H5Dwrite(s->set, from, memory, space, H5P_DEFAULT, data) >= 0;
    int code = good ? ESP_OK : h5_fail("cannot write", f->path, name);
    H5Sclose(space);
    H5Sclose(memory);
    s->count += count;
    return code;
}

int esp_h5_length(esp_h5 *f, const char *name, int64_t *count)
{
    long_set *s;
    TRY(long_set_of(&s, f, name, 0));
    *count = s ? s->count : -1;
    return ESP_OK;
}

int esp_h5_read_part(esp_h5 *f, const char *name, const char *kind, int64_t at, int64_t count, void *data)
{
    hid_t to = number_type(kind), memory;
    if (to < 0) return esp_fail(ESP_EARG, "hdf5: numbers of the kind %s, want u8, u16, i32, i64, u64 or f64", kind);
    long_set *s;
    TRY(long_set_of(&s, f, name, 0));
    if (!s) return esp_fail(ESP_EFORMAT, "%s: there is no %s", f->path, name);
    if (at < 0 || count < 0 || at > s->count - count) {
        return esp_fail(ESP_EARG, "%s: %s: numbers %lld to %lld of %lld", f->path, name, (long long)at, (long long)(at + count), (long long)s->count);
    }
    if (count == 0) return ESP_OK;
    hid_t space = select_part(&memory, s->set, at, count);
    int code = H5Dread(s->set, to, memory, space, H5P_DEFAULT, data) >= 0 ? ESP_OK : h5_fail("cannot read", f->path, name);
    H5Sclose(space);
    H5Sclose(memory);
    return code;
}

int esp_h5_describe(esp_h5 *f, const char *name, int *ndim, int64_t *shape, char dtype[8])
{
    opened o;
    int code = open_set(&o, f, name);
    if (code == ESP_OK) {
        *ndim = o.ndim;
        memcpy(shape, o.shape, sizeof o.shape);
        H5T_class_t class = H5Tget_class(o.type);
        const char *letter = class == H5T_FLOAT ? "f" : class != H5T_INTEGER ? "?" : H5Tget_sign(o.type) == H5T_SGN_NONE ? "u" : "i";
        if (o.dtype[0]) snprintf(dtype, 8, "%s", o.dtype);
        else snprintf(dtype, 8, "%s%d", letter, (int)(8 * o.size) % 1000);
    }
    close_set(&o);
    return code;
}

/* ---- attributes of the file ---- */

/* Of fixed length, which lie in the header of the file and under its checksum; texts of variable length would not. */
int esp_h5_set_text(esp_h5 *f, const char *name, const char *text)
{
    return put_attribute(f->file, name, text) ? ESP_OK : h5_fail("cannot write", f->path, name);
}

int esp_h5_set_integer(esp_h5 *f, const char *name, int64_t value)
{
    hid_t space = H5Screate(H5S_SCALAR), a = H5Acreate2(f->file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    int good = a >= 0 && H5Awrite(a, H5T_NATIVE_INT64, &value) >= 0;
    int code = good ? ESP_OK : h5_fail("cannot write", f->path, name);
    if (a >= 0) H5Aclose(a);
    H5Sclose(space);
    return code;
}

/* The text of a string attribute, of fixed or of variable length as h5py writes it. */
static int read_string(char *to, size_t room, hid_t a, hid_t type)
{
    if (H5Tis_variable_str(type) > 0) {
        char *text = NULL;
        if (H5Aread(a, type, &text) < 0) return 0;
        snprintf(to, room, "%s", text ? text : "");
        H5free_memory(text);
        return 1;
    }
    size_t n = H5Tget_size(type);
    if (n >= room || H5Aread(a, type, to) < 0) return 0;
    to[n] = 0;
    return 1;
}

int esp_h5_get(char **text, esp_h5 *f, const char *name)
{
    enum { ROOM = 1 << 16 };
    *text = NULL;
    if (H5Aexists(f->file, name) <= 0) return ESP_OK;
    char *to = esp_malloc(ROOM);
    if (!to) return ESP_EMEM;
    hid_t a = H5Aopen(f->file, name, H5P_DEFAULT), type = H5Aget_type(a), space = H5Aget_space(a);
    H5T_class_t class = H5Tget_class(type);
    int64_t value;
    int good = H5Sget_simple_extent_npoints(space) == 1;
    if (good && class == H5T_INTEGER) {
        good = H5Aread(a, H5T_NATIVE_INT64, &value) >= 0;
        snprintf(to, ROOM, "%lld", (long long)value);
    } else if (good) {
        good = class == H5T_STRING && read_string(to, ROOM, a, type);
    }
    int code = good ? ESP_OK : esp_fail(ESP_EFORMAT, "%s: the attribute %s is neither a text nor a whole number", f->path, name);
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(a);
    if (good) *text = to;
    else esp_free(to);
    return code;
}
