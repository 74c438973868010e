/* Stands for AXCL's library where there is no card: counts what is done, and refuses what the real one's reference forbids.

   Prototypes are those of AXERA's `axcl_rt*.h`. A model's inputs and outputs stand in a text beside it, `PATH.ports`:

       usage 207618048
       input hidden_1 15 17694720 1 1152 3840        name, axclrtEngineDataType, bytes, shape
       output hidden_2 15 17694720 1 1152 3840

   Where it has a second group of shapes, its lines follow `group 1`, with the same names and types in the same order.
   Memory of the card is memory of the host, given out up to a limit. What a model computes is done by a function that a test gives. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 4096
#define MODELS 128
#define PORTS 64
#define AXES 32
#define GROUPS 2
enum { NOT_INITIALISED = 0x80300101, TWICE, BAD_ARGUMENT, NO_MEMORY, NOT_ALLOCATED, NOT_LOADED, NOT_BOUND, BAD_FILE };

typedef struct { char name[256]; int32_t type; uint64_t size[GROUPS]; int32_t axes[GROUPS]; int32_t shape[GROUPS][AXES]; } port;
typedef struct { int used; char path[4096]; int64_t usage; uint32_t groups, count[2]; port ports[2][PORTS]; } model;
typedef struct { int used; uint64_t model; void *buffers[2][PORTS]; uint64_t sizes[2][PORTS]; } io;
typedef struct { uint32_t num; int32_t devices[256]; } device_list;
typedef struct { int32_t count; int32_t dims[AXES]; } dims_t;
typedef struct {
    char version[64]; uint64_t uid; uint32_t domain, bus, device; int32_t temperature;
    uint32_t total_memory, free_memory, total_cmm, free_cmm, cpu, npu, reserved[32];
} properties;
typedef struct { uint64_t loads, unloads, runs, bindings, allocations, frees, uploaded, downloaded, peak, used; } counts;
typedef int (*compute)(const char *path, void **inputs, void **outputs);

static int initialised, device_set, engine;
static uint64_t limit = 7208960ull << 10, used;
static struct { void *address; size_t size; } pieces[MOST];
static model models[MODELS];
static io ios[MODELS];
static counts counted;
static compute computing;

/* For tests */
void standin_reset(uint64_t cmm, compute given) {
    for (int i = 0; i < MOST; i++) free(pieces[i].address);
    memset(pieces, 0, sizeof pieces); memset(models, 0, sizeof models); memset(ios, 0, sizeof ios);
    memset(&counted, 0, sizeof counted);
    initialised = device_set = engine = 0; used = 0; limit = cmm; computing = given;
}
void standin_counts(counts *to) { counted.used = used; *to = counted; }

static void take(uint64_t size) { used += size; if (used > counted.peak) counted.peak = used; }

/* Whether [address, address + size) lies in one piece of the card's memory */
static int on_card(const void *address, uint64_t size) {
    for (int i = 0; i < MOST; i++) {
        const char *start = pieces[i].address;
        if (start && (const char *)address >= start && (const char *)address + size <= start + pieces[i].size) return 1;
    }
    return 0;
}

static int read_ports(const char *path, model *to) {
    char name[4200], line[1024], kind[16];
    snprintf(name, sizeof name, "%s.ports", path);
    FILE *file = fopen(name, "r");
    if (!file) return 0;
    uint32_t seen[2] = {0, 0}, group = 0;
    to->groups = 1;
    while (fgets(line, sizeof line, file)) {
        int at = 0;
        if (sscanf(line, "usage %ld", (long *)&to->usage) == 1) continue;
        if (sscanf(line, "group %u", &group) == 1) {
            if (group != to->groups || group >= GROUPS) { fclose(file); return 0; }
            to->groups++; seen[0] = seen[1] = 0;
            continue;
        }
        if (sscanf(line, "%15s%n", kind, &at) != 1) continue;
        int side = strcmp(kind, "output") == 0, next = 0;
        port *one = &to->ports[side][seen[side]++], was = *one;
        if (!group) to->count[side]++;
        unsigned long size;
        if (sscanf(line + at, "%255s %d %lu%n", one->name, &one->type, &size, &next) != 3) { fclose(file); return 0; }
        if (group && (seen[side] > to->count[side] || strcmp(was.name, one->name) || was.type != one->type)) { fclose(file); return 0; }
        one->size[group] = size;
        for (char *rest = line + at + next, *end; ; rest = end) {
            long side_length = strtol(rest, &end, 10);
            if (end == rest) break;
            one->shape[group][one->axes[group]++] = (int32_t)side_length;
        }
    }
    fclose(file);
    return 1;
}

static model *loaded(uint64_t id) { return id && id < MODELS && models[id].used ? &models[id] : NULL; }

int32_t axclInit(const char *config) { (void)config; if (initialised) return TWICE; initialised = 1; return 0; }
int32_t axclFinalize(void) { initialised = device_set = engine = 0; return 0; }
int32_t axclrtGetDeviceList(device_list *list) {
    if (!initialised) return NOT_INITIALISED;
    list->num = 1; list->devices[0] = 3; /* its slot, as behind a switch */
    return 0;
}
int32_t axclrtSetDevice(int32_t device) {
    if (!initialised) return NOT_INITIALISED;
    if (device != 3) return BAD_ARGUMENT;
    device_set = 1;
    return 0;
}
int32_t axclrtGetDeviceProperties(int32_t device, properties *to) {
    if (device != 3) return BAD_ARGUMENT;
    memset(to, 0, sizeof *to);
    to->total_cmm = limit >> 10; to->free_cmm = (limit - used) >> 10;
    return 0;
}
int32_t axclrtMalloc(void **to, size_t size, int32_t policy) {
    if (!device_set) return NOT_INITIALISED;
    if (policy != 2 || !size) return BAD_ARGUMENT;
    if (used + size > limit) return NO_MEMORY;
    for (int i = 0; i < MOST; i++) if (!pieces[i].address) {
        pieces[i].address = *to = calloc(1, size); pieces[i].size = size;
        take(size); counted.allocations++;
        return 0;
    }
    return NO_MEMORY;
}
int32_t axclrtFree(void *address) {
    for (int i = 0; address && i < MOST; i++) if (pieces[i].address == address) {
        used -= pieces[i].size; free(address); pieces[i].address = NULL; counted.frees++;
        return 0;
    }
    return NOT_ALLOCATED;
}
int32_t axclrtMemcpy(void *to, const void *from, size_t size, int32_t kind) {
    if (kind != 1 && kind != 2) return BAD_ARGUMENT;
    if (on_card(kind == 1 ? to : from, size) == 0 || on_card(kind == 1 ? from : to, 1)) return NOT_ALLOCATED;
    memcpy(to, from, size);
    *(kind == 1 ? &counted.uploaded : &counted.downloaded) += size;
    return 0;
}
int32_t axclrtEngineInit(int32_t kind) {
    if (!device_set) return NOT_INITIALISED;
    if (kind != 0) return BAD_ARGUMENT;
    if (engine) return TWICE;
    engine = 1;
    return 0;
}
int32_t axclrtEngineFinalize(void) { engine = 0; return 0; }
int32_t axclrtEngineGetUsage(const char *path, int64_t *system, int64_t *card) {
    static model read;
    memset(&read, 0, sizeof read);
    if (!engine) return NOT_INITIALISED;
    if (!read_ports(path, &read)) return BAD_FILE;
    *system = 0; *card = read.usage;
    return 0;
}
int32_t axclrtEngineLoadFromFile(const char *path, uint64_t *id) {
    if (!engine) return NOT_INITIALISED;
    for (uint64_t i = 1; i < MODELS; i++) if (!models[i].used) {
        memset(&models[i], 0, sizeof models[i]);
        if (!read_ports(path, &models[i])) return BAD_FILE;
        if (used + models[i].usage > limit) return NO_MEMORY;
        strncpy(models[i].path, path, sizeof models[i].path - 1);
        models[i].used = 1; *id = i;
        take(models[i].usage); counted.loads++;
        return 0;
    }
    return NO_MEMORY;
}
int32_t axclrtEngineUnload(uint64_t id) {
    if (!loaded(id)) return NOT_LOADED;
    for (int i = 0; i < MODELS; i++) if (ios[i].used && ios[i].model == id) return BAD_ARGUMENT; /* its IO first */
    used -= models[id].usage; models[id].used = 0; counted.unloads++;
    return 0;
}
int32_t axclrtEngineCreateContext(uint64_t id, uint64_t *context) {
    if (!loaded(id)) return NOT_LOADED;
    *context = id + MOST;
    return 0;
}
int32_t axclrtEngineGetIOInfo(uint64_t id, void **info) {
    if (!loaded(id)) return NOT_LOADED;
    *info = (void *)(uintptr_t)id;
    return 0;
}
static port *port_of(void *info, int side, uint32_t index) {
    model *one = loaded((uintptr_t)info);
    return one && index < one->count[side] ? &one->ports[side][index] : NULL;
}
#define SIDE(Name, side)                                                                                                              \
    uint32_t axclrtEngineGetNum##Name##s(void *info) { return loaded((uintptr_t)info) ? models[(uintptr_t)info].count[side] : 0; }     \
    const char *axclrtEngineGet##Name##NameByIndex(void *info, uint32_t index) {                                                       \
        port *one = port_of(info, side, index);                                                                                        \
        return one ? one->name : NULL;                                                                                                 \
    }                                                                                                                                  \
    uint64_t axclrtEngineGet##Name##SizeByIndex(void *info, uint32_t group, uint32_t index) {                                          \
        port *one = port_of(info, side, index);                                                                                        \
        return one && group < models[(uintptr_t)info].groups ? one->size[group] : 0;                                                   \
    }                                                                                                                                  \
    int32_t axclrtEngineGet##Name##Dims(void *info, uint32_t group, uint32_t index, dims_t *dims) {                                    \
        port *one = port_of(info, side, index);                                                                                        \
        if (!one || group >= models[(uintptr_t)info].groups) return BAD_ARGUMENT;                                                      \
        dims->count = one->axes[group]; memcpy(dims->dims, one->shape[group], sizeof dims->dims);                                      \
        return 0;                                                                                                                      \
    }                                                                                                                                  \
    int32_t axclrtEngineGet##Name##DataType(void *info, uint32_t index, int32_t *type) {                                               \
        port *one = port_of(info, side, index);                                                                                        \
        if (!one) return BAD_ARGUMENT;                                                                                                 \
        *type = one->type;                                                                                                             \
        return 0;                                                                                                                      \
    }                                                                                                                                  \
    int32_t axclrtEngineSet##Name##BufferByIndex(void *given, uint32_t index, const void *buffer, uint64_t size) {                     \
        io *to = given;                                                                                                                \
        if (!to || !to->used || index >= models[to->model].count[side]) return BAD_ARGUMENT;                                           \
        if (!on_card(buffer, size)) return NOT_ALLOCATED;                                                                              \
        to->buffers[side][index] = (void *)buffer; to->sizes[side][index] = size; counted.bindings++;                                  \
        return 0;                                                                                                                      \
    }
SIDE(Input, 0)
SIDE(Output, 1)
int32_t axclrtEngineCreateIO(void *info, void **to) {
    if (!loaded((uintptr_t)info)) return NOT_LOADED;
    for (int i = 0; i < MODELS; i++) if (!ios[i].used) {
        memset(&ios[i], 0, sizeof ios[i]);
        ios[i].used = 1; ios[i].model = (uintptr_t)info; *to = &ios[i];
        return 0;
    }
    return NO_MEMORY;
}
int32_t axclrtEngineDestroyIO(void *given) { ((io *)given)->used = 0; return 0; }
int32_t axclrtEngineExecute(uint64_t id, uint64_t context, uint32_t group, void *given) {
    model *one = loaded(id);
    io *of = given;
    if (!one || context != id + MOST || group >= one->groups || !of->used || of->model != id) return NOT_LOADED;
    for (int side = 0; side < 2; side++) for (uint32_t i = 0; i < one->count[side]; i++)
        if (of->sizes[side][i] < one->ports[side][i].size[group] || !on_card(of->buffers[side][i], one->ports[side][i].size[group]))
            return NOT_BOUND;
    for (uint32_t i = 0; i < one->count[0]; i++) for (uint32_t k = 0; k < one->count[1]; k++)
        if (of->buffers[0][i] == of->buffers[1][k]) return BAD_ARGUMENT; /* what it takes and gives must not overlap */
    counted.runs++;
    return computing ? computing(one->path, of->buffers[0], of->buffers[1]) : 0;
}
