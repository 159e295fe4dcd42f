"""Who this process is, from whatever launcher; what is contradictory or missing is named."""

import pytest

from disttrain.component import UserError
from disttrain.launch.rank_info import RankInfo

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
    "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "4",
}  # fmt: skip


def test_torchruns_variables_are_read():
    info = RankInfo.from_environment(TORCHRUN)
    assert (info.rank, info.world_size, info.local_rank, info.local_world_size) == (3, 8, 1, 2)
    assert (info.restarts, info.max_restarts, info.launcher) == (1, 4, "torchrun")


def test_without_a_launcher_a_process_is_alone():
    assert RankInfo.from_environment({"HOME": "/root", "SLURM_STEP_NUM_TASKS": "1"}) == RankInfo()


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_variable_is_named(missing):
    environment = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"{missing} is missing"):
        RankInfo.from_environment(environment)


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("RANK", "-1"), ("WORLD_SIZE", ""), ("LOCAL_RANK", "1.0")])
def test_a_malformed_variable_is_named(name, value):
    with pytest.raises(UserError, match=f"{name}='{value}' is not a number"):
        RankInfo.from_environment(TORCHRUN | {name: value})


@pytest.mark.parametrize(("name", "value"), [("RANK", "8"), ("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "9")])
def test_contradictory_ranks_are_refused(name, value):
    with pytest.raises(UserError, match="contradict"):
        RankInfo.from_environment(TORCHRUN | {name: value})


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_would_not_know_of_each_other_are_refused(variable):
    with pytest.raises(UserError, match="without knowing of each other"):
        RankInfo.from_environment({variable: "4"})


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_two_launchers_are_refused_by_name(variable):
    with pytest.raises(UserError, match=f"two launchers.*{variable}=4.*RANK=3"):
        RankInfo.from_environment(TORCHRUN | {variable: "4"})


def test_one_torchrun_per_slurm_task_is_the_usual_way():
    assert RankInfo.from_environment(TORCHRUN | {"SLURM_STEP_NUM_TASKS": "4"}).rank == 3


def test_a_run_id_of_torchrun_beside_mpirun_is_a_conflict_even_without_a_rank():
    with pytest.raises(UserError, match=r"two launchers.*Open MPI's mpirun \(OMPI_COMM_WORLD_SIZE=2\).*TORCHELASTIC_RUN_ID=x"):
        RankInfo.from_environment({"TORCHELASTIC_RUN_ID": "x", "OMPI_COMM_WORLD_SIZE": "2"})


POD = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def test_a_pod_of_a_pytorchjob_is_one_worker():
    assert RankInfo.from_environment(POD) == RankInfo(1, 3, 0, 1, launcher="kubernetes")


def test_a_pods_variables_outside_kubernetes_are_refused_with_both_possibilities():
    environment = {name: value for name, value in POD.items() if not name.startswith("KUBERNETES")}
    with pytest.raises(
        UserError, match=r"torchrun, or a PyTorchJob without KUBERNETES_SERVICE_HOST .*LOCAL_RANK, LOCAL_WORLD_SIZE are"
    ):
        RankInfo.from_environment(environment)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_what_a_pod_lacks_is_named_with_its_launcher(missing):
    environment = {name: value for name, value in POD.items() if name != missing}
    with pytest.raises(UserError, match=rf"Kubernetes PyTorchJob \(.*\bset\), but .*{missing}"):
        RankInfo.from_environment(environment)


def test_rank_without_world_size_names_all_that_is_missing_and_the_launcher():
    with pytest.raises(
        UserError, match=r"by torchrun \(RANK set\), but WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are"
    ):
        RankInfo.from_environment({"RANK": "0"})


def test_an_address_alone_is_no_launcher():
    assert RankInfo.from_environment({"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}) == RankInfo()
