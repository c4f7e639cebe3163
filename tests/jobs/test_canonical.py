import pytest

from sdjax.jobs.job import Job, JobError


def test_samplers_go_by_the_names_of_three_vocabularies():
    for name in ("dpmpp_2m", "DPM++ 2M", "dpm++ 2m", "DPMSolverMultistepScheduler", "k_dpmpp_2m", "DPMSolverMultistep"):
        assert Job(prompt="a", sampler=name).sampler == "dpmpp_2m"
    karras = Job(prompt="a", sampler="DPM++ 2M SDE Karras")
    assert (karras.sampler, karras.schedule) == ("dpmpp_2m_sde", "karras")
    assert Job(prompt="a", schedule="SGM Uniform").schedule == "sgm_uniform"
    assert Job(prompt="a", schedule="normal").schedule == "uniform"
    assert Job(prompt="a", schedule="Automatic").schedule is None
    with pytest.raises(JobError, match="names another schedule"):
        Job(prompt="a", sampler="DPM++ 2M Karras", schedule="simple")


def test_a_spacing_in_the_place_of_a_schedule_is_told():
    with pytest.raises(JobError, match=r"schedule = 'trailing': that is how timesteps are laid; say it in timestep_sp"):
        Job(prompt="a", schedule="trailing")


@pytest.mark.parametrize("name", ["dpm_adaptive", "DPM adaptive"])
def test_why_there_is_no_adaptive_sampler_is_told(name):
    with pytest.raises(JobError, match="decides from image to image"):
        Job(prompt="a", sampler=name)


def test_so_many_controlnets_are_too_many():
    with pytest.raises(JobError, match="up to 8 of them"):
        Job(prompt="a", image="a.png", controlnets="; ".join(["edges"] * 9))
