"""Peak memory of the span head, forward and backward: the textbook form against the fused operator.

    python bench/head_memory.py [--words 512] [--types 25] [--width 768] [--max-width 12]

There is one text. Each form runs in a separate process, which measures the growth of its peak resident set beyond
weights and inputs, scratch memory of kernels included. The losses of both forms are compared first.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch


def measure(form: str, words: int, types: int, width: int, max_width: int) -> dict[str, float]:
    from glimodern import ops, reference
    from glimodern.network.head import SpanHead

    torch.manual_seed(0)
    head = SpanHead(width, 0.0, "markerV0", max_width)
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run(words: int, types: int) -> float:
        h, p = torch.randn(words, width, requires_grad=True), torch.randn(types, width, requires_grad=True)
        cu_words, cu_types = torch.tensor([0, words], dtype=torch.int32), torch.tensor([0, types], dtype=torch.int32)
        positives = torch.tensor([[3, 1, 0], [words // 2, 0, types - 1]], dtype=torch.int32)
        if form == "fused":
            loss = ops.span_loss(*head.fold(h, p), cu_words, cu_types, positives, max_width)
        else:
            logits = reference.textbook_scores(*head.parts(h, p), cu_words, cu_types, max_width)
            loss = reference.loss_of_scores(logits, cu_words, cu_types, positives, max_width)
        loss.backward()
        return loss.item()

    run(8, 2)  # what the libraries load and keep at their first call, and the weights' gradients in passing
    torch.manual_seed(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = run(words, types)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mib": (after - before) / 1024, "loss": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"words": 512, "types": 25, "width": 768, "max-width": 12}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--form", choices=("fused", "textbook"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (options.words, options.types, options.width, options.max_width)
    if options.form:
        print(json.dumps(measure(options.form, *shape)))
        return
    found = {}
    for form in ("textbook", "fused"):
        command = [sys.executable, __file__, "--form", form, *sys.argv[1:]]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        found[form] = json.loads(answer.stdout)
    loss, other = found["textbook"]["loss"], found["fused"]["loss"]
    if abs(loss - other) > 1e-4 * abs(loss):
        raise SystemExit(f"loss: expected equal values of both forms, got {loss} and {other}")
    textbook, fused = found["textbook"]["peak_mib"], found["fused"]["peak_mib"]
    print("{} words, {} types, d {}, K {}, fp32, forward + backward".format(*shape))
    print(f"textbook {textbook:.0f} MiB   fused {fused:.0f} MiB   textbook / fused {textbook / fused:.1f}")


if __name__ == "__main__":
    main()
