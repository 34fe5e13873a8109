[ "bottle" "waitress" "psutil" "pytest" "pytest-xdist" "pytest-timeout" "hypothesis" "setuptools" "pip" ]
