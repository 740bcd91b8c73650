#ifndef DECISION_SEQ_READ_ALL_H
#define DECISION_SEQ_READ_ALL_H

#include <stdio.h>
#include <stdlib.h>

/* A file in memory of its own. NULL: it cannot be read, is empty, or memory is short. */
static void *read_all(const char *path, long *bytes) {
    FILE *file = fopen(path, "rb");
    void *data = NULL;
    if (!file) return NULL;
    if (!fseek(file, 0, SEEK_END) && (*bytes = ftell(file)) > 0 && !fseek(file, 0, SEEK_SET)) {
        data = malloc(*bytes);
        if (data && fread(data, 1, *bytes, file) != (size_t)*bytes) free(data), data = NULL;
    }
    fclose(file);
    return data;
}

#endif
