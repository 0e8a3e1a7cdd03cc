# The environment of what runs in a lab machine. The project is read-only there.
export CRANNOG_LAB=@LAB@
export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
export LC_ALL=C.UTF-8
export PYTEST_ADDOPTS='-p no:cacheprovider'
export PYTHONDONTWRITEBYTECODE=1
