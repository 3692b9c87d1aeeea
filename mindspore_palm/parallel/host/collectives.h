// All-gather, all-reduce and reduce-scatter over a group's shared buffers.
#ifndef MINDSPORE_PALM_PARALLEL_HOST_COLLECTIVES_H_
#define MINDSPORE_PALM_PARALLEL_HOST_COLLECTIVES_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "shared_memory.h"
#include "ir/dtype/type_id.h"

namespace mindspore_palm::host {

enum class Reduce : uint8_t { kSum = 1, kMax, kMin, kProd };

// Throws std::runtime_error: a reduction of MindSpore that is none of these.
Reduce ReduceOf(const std::string &name);

// Elements are reduced in order of rank, each on one worker or on all in the same way: all workers get the same bits.
// 16-bit floats are reduced in 32 bits and rounded once.
// All three throw std::runtime_error as Channel::Barrier does, and for a type that cannot be reduced.
void AllGather(Channel *channel, const char *in, char *out, size_t bytes);  // in: bytes; out: members * bytes
void AllReduce(Channel *channel, const char *in, char *out, size_t bytes, mindspore::TypeId type, Reduce reduce);
// in: members * bytes; out: bytes
void ReduceScatter(Channel *channel, const char *in, char *out, size_t bytes, mindspore::TypeId type, Reduce reduce);

}  // namespace mindspore_palm::host

#endif  // MINDSPORE_PALM_PARALLEL_HOST_COLLECTIVES_H_
