"""The passes, by name. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdsl.passes import ModulePass


def get_all_passes() -> dict[str, Callable[[], type[ModulePass]]]:
    """Name of each pass → a function that imports and returns its class, in the order of the pipeline."""

    def expand_training() -> type[ModulePass]:
        from passes.expand_training import ExpandTrainingPass

        return ExpandTrainingPass

    def recompute_activations() -> type[ModulePass]:
        from passes.recompute_activations import RecomputeActivationsPass

        return RecomputeActivationsPass

    def annotate_costs() -> type[ModulePass]:
        from passes.annotate_costs import AnnotateCostsPass

        return AnnotateCostsPass

    def restrict_allotments() -> type[ModulePass]:
        from passes.restrict_allotments import RestrictAllotmentsPass

        return RestrictAllotmentsPass

    def partition_stages() -> type[ModulePass]:
        from passes.partition_stages import PartitionStagesPass

        return PartitionStagesPass

    def schedule_periodic() -> type[ModulePass]:
        from passes.schedule_periodic import SchedulePeriodicPass

        return SchedulePeriodicPass

    def schedule_step() -> type[ModulePass]:
        from passes.schedule_step import ScheduleStepPass

        return ScheduleStepPass

    def insert_communication() -> type[ModulePass]:
        from passes.insert_communication import InsertCommunicationPass

        return InsertCommunicationPass

    def lower_to_programs() -> type[ModulePass]:
        from passes.lower_to_programs import LowerToProgramsPass

        return LowerToProgramsPass

    def verify_level() -> type[ModulePass]:
        from passes.verify_level import VerifyLevelPass

        return VerifyLevelPass

    def verify_schedule() -> type[ModulePass]:
        from passes.verify_schedule import VerifySchedulePass

        return VerifySchedulePass

    return {
        "expand-training": expand_training,
        "recompute-activations": recompute_activations,
        "annotate-costs": annotate_costs,
        "restrict-allotments": restrict_allotments,
        "partition-stages": partition_stages,
        "schedule-periodic": schedule_periodic,
        "schedule-step": schedule_step,
        "insert-communication": insert_communication,
        "lower-to-programs": lower_to_programs,
        "verify-level": verify_level,
        "verify-schedule": verify_schedule,
    }
