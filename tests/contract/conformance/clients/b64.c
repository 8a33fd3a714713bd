/* libb64's five functions that perf_analyzer calls: a machine need not have that library installed. RFC 4648, no line
 * breaks. The states are those of b64/cencode.h and b64/cdecode.h: a step, what is kept, and for encoding a count. */
typedef struct { int step; char kept; int count; } encode_state;
typedef struct { int step; char kept; } decode_state;

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void base64_init_encodestate(encode_state *state) { state->step = 0; state->kept = 0; state->count = 0; }

int base64_encode_block(const char *in, int size, char *out, encode_state *state) {
  char *at = out;
  for (int i = 0; i < size; i++) {
    unsigned char byte = (unsigned char)in[i];
    if (state->step == 0) {
      *at++ = ALPHABET[byte >> 2];
      state->kept = (char)((byte & 3) << 4);
    } else if (state->step == 1) {
      *at++ = ALPHABET[state->kept | (byte >> 4)];
      state->kept = (char)((byte & 15) << 2);
    } else {
      *at++ = ALPHABET[state->kept | (byte >> 6)];
      *at++ = ALPHABET[byte & 63];
      state->kept = 0;
    }
    state->step = (state->step + 1) % 3;
  }
  return (int)(at - out);
}

int base64_encode_blockend(char *out, encode_state *state) {
  char *at = out;
  if (state->step) {
    *at++ = ALPHABET[(int)state->kept];
    if (state->step == 1) *at++ = '=';
    *at++ = '=';
  }
  return (int)(at - out);
}

void base64_init_decodestate(decode_state *state) { state->step = 0; state->kept = 0; }

static int value_of(char letter) {
  for (int i = 0; i < 64; i++)
    if (ALPHABET[i] == letter) return i;
  return -1;
}

int base64_decode_block(const char *in, int size, char *out, decode_state *state) {
  char *at = out;
  for (int i = 0; i < size; i++) {
    int value = value_of(in[i]);
    if (value < 0) continue;
    if (state->step == 1) *at++ = (char)((unsigned char)state->kept << 2 | value >> 4);
    if (state->step == 2) *at++ = (char)((unsigned char)state->kept << 4 | value >> 2);
    if (state->step == 3) *at++ = (char)((unsigned char)state->kept << 6 | value);
    state->kept = (char)value;
    state->step = (state->step + 1) % 4;
  }
  return (int)(at - out);
}
