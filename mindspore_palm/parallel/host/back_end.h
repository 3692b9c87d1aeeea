// The parts of the host back end that MindSpore's own registries call.
#ifndef MINDSPORE_PALM_PARALLEL_HOST_BACK_END_H_
#define MINDSPORE_PALM_PARALLEL_HOST_BACK_END_H_

#include <cstdint>
#include <string>
#include <vector>

namespace mindspore_palm::host {

// The ranks of a group, in order; all ranks for a name of the world group.
// Throws std::runtime_error: there is no such group.
std::vector<uint32_t> RanksOf(const std::string &group);

// Replaces MindSpore's CPU kernels of AllGather, AllReduce and ReduceScatter by those of kernels.cc.
void RegisterKernels();

}  // namespace mindspore_palm::host

#endif  // MINDSPORE_PALM_PARALLEL_HOST_BACK_END_H_
