/* Q8_0: blocks of 32 numbers as one f16 scale and 32 signed bytes. Internal. */
#ifndef ESP_Q8_H
#define ESP_Q8_H

#include "../base/base.h"

enum { Q8_BLOCK = 32, Q8_BYTES = 34 };

/* to f32 [count] from the blocks at `from`; count is a multiple of 32. ESP_ESTOP when interrupted. */
int esp_q8_numbers(float *to, const void *from, int64_t count);

#endif
