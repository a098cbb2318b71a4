#include <nanobind/nanobind.h>

NB_MODULE(_C, m) { m.def("isa", []() { return "scalar"; }); }
