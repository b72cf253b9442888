greet() { echo "$1 of ${VARIANT:-nothing}"; }
