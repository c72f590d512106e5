# The same as ./run, for those who type make.
.PHONY: demo test lint coverage matrix wheel setup

demo test lint coverage matrix wheel setup:
	@sh ./run $@
