/*
 * Runs a fuzz target over files: every regular file of the folders (or the files) that are named.
 * The same target builds with libFuzzer (NOSA_FUZZ=ON, clang) for the search; this is how the
 * committed corpus is replayed with any compiler, under the sanitizers of the build.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        fprintf(stderr, "%s: cannot read\n", path);
        exit(1);
    }
    long size = ftell(file);
    rewind(file);
    /* Exactly as long as the input, so that a sanitizer sees the first byte read past it. */
    uint8_t *data = malloc(size > 0 ? (size_t)size : 1);
    if (size < 0 || !data || fread(data, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "%s: cannot read\n", path);
        exit(1);
    }
    fclose(file);
    LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    return 1;
}

static int replay(const char *path)
{
    DIR *listing = opendir(path);
    int count = 0;
    if (!listing)
        return replay_file(path);
    struct dirent *entry;
    while ((entry = readdir(listing)) != NULL) {
        char inner[4096];
        struct stat info;
        if ((size_t)snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) < sizeof inner &&
            stat(inner, &info) == 0 && S_ISREG(info.st_mode))
            count += replay_file(inner);
    }
    closedir(listing);
    return count;
}

int main(int argc, char **argv)
{
    int count = 0;
    for (int i = 1; i < argc; i++)
        count += replay(argv[i]);
    printf("%d inputs\n", count);
    if (count == 0)
        fprintf(stderr, "no inputs: name files or folders\n");
    return count == 0;
}
