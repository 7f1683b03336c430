/* Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3; 2011): random bits as a function of key and counter, so
 * the same numbers come from every thread count and every device. */
#include "base.h"

void esp_philox(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t p = (uint64_t)0xD2511F53u * c[0], q = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t next[4] = {(uint32_t)(q >> 32) ^ c[1] ^ key[0], (uint32_t)q, (uint32_t)(p >> 32) ^ c[3] ^ key[1], (uint32_t)p};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

/* Six rounds of a Feistel network on numbers of 2*half bits, half as small as n allows, so that fewer than four steps of the walk are needed on
 * average. The round function is Philox, keyed by the seed; the stream's upper bits set these draws apart from those that fill tensors. */
int64_t esp_permute(int64_t i, int64_t n, uint64_t seed, uint64_t stream)
{
    int half = 1;
    while (half < 26 && (int64_t)1 << 2 * half < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)i;
    if (n < 2) return 0;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint32_t bits[4];
            esp_philox(bits, seed, stream ^ (uint64_t)0x5045524D << 32, right << 3 | round);
            uint64_t mixed = left ^ (bits[0] & mask);
            left = right;
            right = mixed;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}
