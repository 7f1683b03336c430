/* The life of a tensor seen from C: references, views, dropping, sizes that overflow, arguments that are wrong. */
#include <stdio.h>
#include <string.h>

#include "../../core/espalier.h"

static int failures;

#define CHECK(condition)                                                                                                                   \
    do {                                                                                                                                   \
        if (!(condition)) {                                                                                                                \
            printf("%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, esp_error());                                           \
            failures++;                                                                                                                    \
        }                                                                                                                                  \
    } while (0)

/* The call must fail with this status and a sentence that holds `part`. */
static void refuses(int line, int got, int want, const char *part)
{
    if (got == want && strstr(esp_error(), part)) return;
    printf("%s:%d: got %d \"%s\", want %d with \"%s\"\n", __FILE__, line, got, esp_error(), want, part);
    failures++;
}
#define REFUSES(call, want, part) refuses(__LINE__, call, want, part)

static void life(void)
{
    int64_t before = esp_memory_live(), shape[] = {4, 6}, part[] = {2, 3}, steps[] = {6, 1};
    esp_tensor *t, *view;
    CHECK(esp_tensor_new(&t, ESP_F32, 2, shape) == 0);
    CHECK(esp_fill(t, 2.0) == 0);
    CHECK(esp_tensor_view(&view, t, 2, part, steps, 7) == 0);
    esp_tensor_drop(t);
    esp_tensor_drop(t);
    CHECK(esp_memory_live() > before);          /* the view holds the bytes */
    REFUSES(esp_fill(t, 1.0), ESP_EARG, "was freed");
    CHECK(esp_fill(view, 3.0) == 0);
    esp_tensor_free(t);
    esp_tensor_free(view);
    CHECK(esp_memory_live() == before);
}

static void sizes(void)
{
    esp_tensor *t;
    int64_t huge[] = {(int64_t)1 << 40, (int64_t)1 << 40}, negative[] = {-1}, small[] = {3}, far[] = {4}, one[] = {1};
    CHECK(esp_tensor_new(&t, ESP_F32, 2, huge) < 0);
    CHECK(esp_tensor_new(&t, ESP_F32, 1, negative) < 0);
    CHECK(esp_tensor_new(&t, 99, 1, small) < 0);
    CHECK(esp_tensor_new(&t, ESP_F32, 1, small) == 0);
    esp_tensor *view;
    CHECK(esp_tensor_view(&view, t, 1, far, one, 0) < 0);
    CHECK(esp_tensor_view(&view, t, 1, small, one, 1) < 0);
    CHECK(esp_tensor_view(&view, t, 1, small, one, -1) < 0);
    esp_tensor_free(t);
}

static void shapes_of_operations(void)
{
    int64_t a[] = {2, 3}, b[] = {2, 4};
    esp_tensor *x, *y;
    CHECK(esp_tensor_new(&x, ESP_F32, 2, a) == 0 && esp_tensor_new(&y, ESP_F32, 2, b) == 0);
    REFUSES(esp_add(x, x, y), ESP_ESHAPE, "add: ");
    REFUSES(esp_linear(x, x, y, NULL, ESP_F32), ESP_ESHAPE, "linear: ");
    REFUSES(esp_exp(x, NULL), ESP_EARG, "exp: ");
    esp_tensor_free(x);
    esp_tensor_free(y);
}

static void one_allocation_fails(void)
{
    int64_t before = esp_memory_live(), shape[] = {1000};
    esp_tensor *t;
    esp_memory_fail_at(1);
    CHECK(esp_tensor_new(&t, ESP_F32, 1, shape) == ESP_EMEM);
    CHECK(esp_memory_live() == before);
    CHECK(esp_tensor_new(&t, ESP_F32, 1, shape) == 0);
    esp_tensor_free(t);
}

int main(void)
{
    life();
    sizes();
    shapes_of_operations();
    one_allocation_fails();
    return failures != 0;
}
