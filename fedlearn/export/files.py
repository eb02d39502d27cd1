"""The unsigned files of a task bundle: plan, graphs, weights, golden vectors."""

from __future__ import annotations

from fedlearn.device.bundle import GOLDEN, INFER, PLAN, PRIVATE, PRIVATE_STEP, STEP, WEIGHTS
from fedlearn.device.plan import DevicePlan
from fedlearn.device.plan_codec import plan_bytes
from fedlearn.export.golden import golden_bytes
from fedlearn.export.infer import infer_onnx
from fedlearn.export.plan import PlanOptions, Trained, columns_of, make_plan, weights_of
from fedlearn.export.step import step_onnx
from fedlearn.policy.document import Policy


def task_files(trained: Trained, policy: Policy, options: PlanOptions) -> tuple[DevicePlan, dict[str, bytes]]:
    """Return the plan and the files of a task bundle, but for policy and roster; equal arguments give equal bytes.

    Raises:
        OutOfRange, UnknownSetting: the run cannot be exported, or the policy does not allow it.
        BundleRefused: a graph that no phone runs.
        MissingDependency: onnx or onnxscript is not installed.
    """
    make_plan(trained, policy, options, {})  # what the policy refuses is refused before seconds of tracing
    columns, terms = columns_of(trained), trained.terms
    graphs = {
        STEP: step_onnx(trained.model, columns, terms.batch_size),
        INFER: infer_onnx(trained.model),
    }
    if terms.example_privacy is not None:
        graphs[PRIVATE_STEP] = step_onnx(trained.model, columns, terms.batch_size, terms.example_privacy)
    plan = make_plan(trained, policy, options, graphs)
    files = {PLAN: plan_bytes(plan), WEIGHTS: weights_of(trained.parameters, plan.shared), **graphs}
    if plan.private:
        files[PRIVATE] = weights_of(trained.parameters, plan.private)
    files[GOLDEN] = golden_bytes(trained, plan)
    return plan, files
