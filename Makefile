# The same as ./run, for those who type make.
.PHONY: demo test setup

demo test setup:
	@sh ./run $@
