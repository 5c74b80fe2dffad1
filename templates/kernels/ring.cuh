// What a kernel tells the host while it runs, beside `publish` of a word.
#ifndef FUSE_HOST
// What this thread and those behind a barrier with it have written is there for the host before what this thread writes after it.
DEVICE void settle_for_host() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
// Eight bytes that the host polls in pinned memory, which it sees at once. They order no other write.
DEVICE void publish(u64* p, u64 value) { asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory"); }
#endif
