# The same as ./run, for those who type make.
.PHONY: demo test lint coverage matrix wheel triton setup

demo test lint coverage matrix wheel triton setup:
	@sh ./run $@
