// What of the host back end MindSpore's own registries point to.
#ifndef MINDSPORE_PALM_PARALLEL_HOST_BACK_END_H_
#define MINDSPORE_PALM_PARALLEL_HOST_BACK_END_H_

#include <cstdint>
#include <string>
#include <vector>

namespace mindspore_palm::host {

// The ranks of a group in their order; the world's for a name of the world.
// Throws std::runtime_error: nobody has made such a group.
std::vector<uint32_t> RanksOf(const std::string &group);

// Has MindSpore take AllGather, AllReduce and ReduceScatter on CPU from kernels.cc.
void RegisterKernels();

}  // namespace mindspore_palm::host

#endif  // MINDSPORE_PALM_PARALLEL_HOST_BACK_END_H_
