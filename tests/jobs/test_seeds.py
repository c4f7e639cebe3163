from sdjax.jobs.job import Job
from sdjax.jobs.seeds import derived_seed, repeated


def test_a_seed_not_given_is_derived_from_the_run_the_row_and_the_repeat():
    row = Job(prompt="a cat")
    job = Job(prompt="a cat", steps=7)
    seeds = [each.seed for each in repeated(job, vars(row), 3, 0)]
    assert seeds == [derived_seed(0, vars(row), repeat) for repeat in range(3)]
    assert len({*seeds, derived_seed(1, vars(row), 0), derived_seed(0, vars(Job(prompt="a dog")), 0)}) == 5
    assert [each.seed for each in repeated(row, vars(row), 2, 0)] == seeds[:2]


def test_a_seed_given_counts_up_over_the_repeats():
    job = Job(prompt="a", seed=5)
    assert [each.seed for each in repeated(job, vars(job), 3, 9)] == [5, 6, 7]
