# Horovod 0.28.1 sets CMAKE_CXX_STANDARD to 14 after project(), but the headers of torch >= 2.1 are C++17.
# CMake takes the compiler flag of a standard from these variables, so "14" now means C++17 and no source changes.
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++17")
set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++17")
