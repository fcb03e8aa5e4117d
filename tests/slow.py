"""The tests that `make test` leaves out, which one runs while working; `make check` runs all.

What takes long and seldom tells more than the rest: contracts over models beyond a representative dozen,
those of tracing beyond half of it, everything that starts processes of its own, trainings, and pages of the
documentation.
"""

from __future__ import annotations

import re

# A plain one, one of each kind of machine, and those whose forward is unlike the others'.
REPRESENTATIVE = {
    "vit_tiny_patch14_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_base_patch32_siglip_256",
    "navit_tiny_patch16",
    "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "levit_128s",
    "maxvit_tiny_tf_224",
    "mobilevit_xxs",
    "deit_small_patch16_224_ats",
    "vivit_b_16x2_fe",
}
# Of these, the ones that are compiled, exported and converted: tracing takes as long as all other contracts.
TRACED = {
    "vit_small_patch16_rope_mixed_224",
    "navit_tiny_patch16",
    "levit_128s",
    "maxvit_tiny_tf_224",
    "deit_small_patch16_224_ats",
    "vivit_b_16x2_fe",
}
# The names of timm's models are a contract, too, with data that seldom change.
CONTRACT = re.compile(
    r"tests/(contracts/(?P<file>\w+)|papers/test_timm_names)\.py.*\[(?P<model>[\w-]+?)[\]-]"
)
SLOW = re.compile(
    "|".join(
        (
            # Checked shapes: the layers and contracts a second time.
            r"tests/architecture/test_shapes_checked\.py",
            # Examples of the documentation.
            r"tests/architecture/test_examples\.py::test_examples_run\[docs/",
            # Pages that Sphinx builds.
            r"tests/architecture/test_site\.py::test_(command_reference|table_of_models)_holds",
            # Trainings, of which some start several processes.
            r"tests/training/(?!test_(history|optim|progress|runs))",
            r"tests/ssl/test_(pretraining|methods)",
            r"tests/analysis/test_relevance\.py::test_the_patch_that_makes_the_class",
            r"tests/papers/test_hybrid_parity\.py::test_ten_steps",
            r"tests/papers/test_(\w*learning|\w+\.py::test_(learns_(?!from_a_share)|neighbours_share))",
            # A repository of its own.
            r"tests/architecture/test_new_paper",
            r"tests/architecture/test_tutorials\.py::test_tutorial\[",
            # Commands, in processes of their own.
            r"tests/cli/(?!test_settings)",
            r"tests/faults/(?!test_(reliability_page|fuzz))",
            r"tests/export/test_(export|gpu_script)",
            r"tests/data/test_(stream|loader_workers|image_loader)",
            # Compilation and export of options, and to machine code.
            r"tests/contracts/test_compile\.py::test_inductor",
            r"tests/papers/.*(compile|export|traced|graphs_whole)",
            r"tests/analysis/test_(page|report)",
        )
    )
)


def is_slow(test: str) -> bool:
    """Return whether a test, by its id, is left out."""
    contract = CONTRACT.match(test)
    if contract is not None and contract["file"] != "test_registry":
        return contract["model"] not in (TRACED if contract["file"] == "test_compile" else REPRESENTATIVE)
    return SLOW.match(test) is not None
