#include "bindings.h"

#include <nanobind/stl/vector.h>

#include "glimodern/chain.h"

namespace nb = nanobind;

namespace glimodern {

void bind_chain(nb::module_& m) {
  nb::class_<Chain>(m, "Chain")
      .def(nb::init<Dtype>())
      .def("buffer", &Chain::buffer)
      .def("linear",
           [](Chain& chain, int src, int dst, int64_t inputs, int64_t outputs, WeightDtype weight_dtype,
              uintptr_t weight, uintptr_t input_scale, uintptr_t scale, uintptr_t weight_sum, uintptr_t bias,
              Activation activation, int64_t rank, int z, uintptr_t low_rank_weight) {
             LinearPacked layer{};
             layer.inputs = inputs, layer.outputs = outputs;
             layer.weight_dtype = weight_dtype, layer.weight = at<const void>(weight);
             layer.input_scale = at<const float>(input_scale), layer.scale = at<const float>(scale);
             layer.weight_sum = at<const int32_t>(weight_sum), layer.bias = at<const float>(bias);
             layer.activation = activation;
             layer.low_rank.rank = rank, layer.low_rank.weight = at<const float>(low_rank_weight);
             chain.linear(src, dst, layer, z);
           })
      .def("add_layer_norm",
           [](Chain& chain, int x, int residual, int dst, int sum, Dtype dtype, uintptr_t weight, uintptr_t bias,
              double eps, bool rms) {
             chain.add_layer_norm(x, residual, dst, sum,
                                  {dtype, at<const void>(weight), at<const void>(bias), eps, rms});
           })
      .def("rotary", [](Chain& chain, int src, int64_t first, int dst, int table, int64_t heads,
                        int64_t half) { chain.rotary({src, first}, dst, table, heads, half); })
      .def("repeat_heads", &Chain::repeat_heads)
      .def("attention",
           [](Chain& chain, int q, int64_t q_first, int k, int64_t k_first, int v, int64_t v_first, int dst,
              int64_t heads, int64_t head_dim, int64_t window, double scale, uintptr_t position_rows, int64_t reach,
              int64_t table_rows, uintptr_t c2p, uintptr_t p2c, uintptr_t bias) {
             Positions positions{at<const int32_t>(position_rows), reach, table_rows, nullptr, nullptr, nullptr};
             positions.c2p = at<const void>(c2p), positions.p2c = at<const void>(p2c);
             positions.bias = at<const void>(bias);
             chain.attention({q, q_first}, {k, k_first}, {v, v_first}, dst, heads, head_dim, window, scale, positions);
           })
      .def("keep", &Chain::keep)
      .def("kept_from_here", &Chain::kept_from_here)
      .def("workspace_bytes", &Chain::workspace_bytes)
      .def("run", [](const Chain& chain, uintptr_t input, uintptr_t workspace, int64_t rows, uintptr_t cu_seqlens,
                     int64_t texts, const std::vector<uintptr_t>& tables, uintptr_t kept, int64_t kept_rows,
                     uintptr_t output, int threads) {
        ChainCall call{at<const void>(input),
                       at<void>(workspace),
                       rows,
                       at<const int32_t>(cu_seqlens),
                       texts,
                       {},
                       at<const int64_t>(kept),
                       kept_rows,
                       at<void>(output),
                       checked_threads(threads)};
        for (uintptr_t table : tables) call.tables.push_back(at<const float>(table));
        nb::gil_scoped_release release;
        chain.run(call);
      });
}

}  // namespace glimodern
