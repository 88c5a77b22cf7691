# SPDX-License-Identifier: BSD-2-Clause
# The engine broken in named ways: which test notices?
.PHONY: mutants
mutants: ##@ break the engine in named ways and show which test notices; MUTANTS=... for some
	@tools/deps check
	@tests/mutants/run '$(BUILD)' $(MUTANTS)
