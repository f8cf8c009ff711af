# Given to CMake as CMAKE_TOOLCHAIN_FILE (an environment variable that CMake >= 3.21 reads), only to name the
# file that CMake includes after Horovod's project() call. See docs/decisions/001-horovod-wheel.md.
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/cxx17.cmake")
