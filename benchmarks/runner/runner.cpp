// Runs an exported program on one input without Python and torch, as on a phone.
//
// Reads float32 numbers, runs the program's `forward`, writes the output in the same format, and
// prints one line of JSON. An error is one line on stderr; see USAGE for the exit codes.

#include <getopt.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

// The SDK's libraries export the thread pool, but the SDK lacks the header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(std::uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

namespace fs = std::filesystem;
namespace runtime = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::extension::Module;
using Clock = std::chrono::steady_clock;

constexpr char USAGE[] =
    R"(usage: runner --model FILE --input FILE --shape SIZES --output FILE [options]

  --model FILE    the exported program (.pte)
  --input FILE    input of the program: float32 numbers, little-endian
  --shape SIZES   shape of the input, for example 1,128,296
  --output FILE   output of the program, in the same format
  --rounds N      timed runs after a warm-up run; default 1
  --threads N     threads of ExecuTorch's pool; default 1

Prints one line of JSON: load_ms, run_ms (the median), rounds, threads, shape (of the output) and
peak_memory_bytes (of the process). Exit codes: 0 done, 1 the program failed, 2 bad input.
)";

// ExecuTorch's thread pool fails on very large numbers.
constexpr int MAX_THREADS = 256;

enum ExitCode { FAILED = 1, BAD_INPUT = 2 };

struct Failure : std::runtime_error {
  Failure(ExitCode code, const std::string& line) : std::runtime_error(line), code(code) {}
  ExitCode code;
};

struct Options {
  std::string model, input, output;
  std::vector<SizesType> shape;
  int rounds = 1;
  int threads = 1;
};

struct Report {
  double load_ms, run_ms;
  std::vector<SizesType> shape;
};

// --- Command line -------------------------------------------------------------------------------

// Parses a whole number from 1 to `highest`.
int number(std::string_view text, const std::string& option, int highest = INT_MAX) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), value);
  if (error != std::errc() || end != text.end() || value < 1 || value > highest) {
    throw Failure(BAD_INPUT, option + " takes whole numbers from 1 to " + std::to_string(highest) +
                                 ", not '" + std::string(text) + "'");
  }
  return value;
}

std::vector<SizesType> sizes(std::string_view text) {
  std::vector<SizesType> result;
  while (true) {
    const auto comma = text.find(',');
    result.push_back(number(text.substr(0, comma), "--shape"));
    if (comma == text.npos) return result;
    text.remove_prefix(comma + 1);
  }
}

Options parse(int count, char** arguments) {
  constexpr option NAMES[] = {
      {"model", required_argument, nullptr, 'm'},
      {"input", required_argument, nullptr, 'i'},
      {"shape", required_argument, nullptr, 's'},
      {"output", required_argument, nullptr, 'o'},
      {"rounds", required_argument, nullptr, 'r'},
      {"threads", required_argument, nullptr, 't'},
      {"help", no_argument, nullptr, 'h'},
      {},
  };
  Options options;
  opterr = 0;
  for (int name; (name = getopt_long(count, arguments, "", NAMES, nullptr)) != -1;) {
    switch (name) {
      case 'm': options.model = optarg; break;
      case 'i': options.input = optarg; break;
      case 's': options.shape = sizes(optarg); break;
      case 'o': options.output = optarg; break;
      case 'r': options.rounds = number(optarg, "--rounds"); break;
      case 't': options.threads = number(optarg, "--threads", MAX_THREADS); break;
      case 'h': std::fputs(USAGE, stdout); std::exit(0);
      default:
        throw Failure(BAD_INPUT, "'" + std::string(arguments[optind - 1]) +
                                     "' is not understood; see --help");
    }
  }
  if (optind < count || options.model.empty() || options.input.empty() || options.shape.empty() ||
      options.output.empty()) {
    throw Failure(BAD_INPUT, "--model, --input, --shape and --output are needed; see --help");
  }
  return options;
}

std::string written(const std::vector<SizesType>& shape) {
  std::string text;
  for (const auto size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// --- Files of numbers ---------------------------------------------------------------------------

std::vector<float> read(const fs::path& path, const std::vector<SizesType>& shape) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error) throw Failure(BAD_INPUT, path.string() + ": " + error.message());
  // Division instead of multiplication, because the product of the sizes may overflow.
  bool fits = bytes % sizeof(float) == 0;
  auto rest = bytes / sizeof(float);
  for (const auto size : shape) {
    fits = fits && rest % size == 0;
    rest /= size;
  }
  if (!fits || rest != 1) {
    throw Failure(BAD_INPUT, path.string() + " holds " + std::to_string(bytes) +
                                 " bytes, which are not the float32 numbers of shape " +
                                 written(shape));
  }
  std::vector<float> numbers(bytes / sizeof(float));
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(numbers.data()), static_cast<std::streamsize>(bytes))) {
    throw Failure(BAD_INPUT, path.string() + " cannot be read");
  }
  return numbers;
}

// Writes the file whole or not at all, by renaming a temporary file.
void write(const fs::path& path, const Tensor& tensor) {
  const fs::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()),
             static_cast<std::streamsize>(tensor.nbytes()));
  file.close();
  std::error_code error;
  if (file) fs::rename(partial, path, error);
  if (!file || error) {
    fs::remove(partial, error);
    throw Failure(BAD_INPUT, path.string() + " cannot be written");
  }
}

// Peak resident memory of this process in bytes; under an emulator, including the emulator's.
std::uint64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return 1024 * std::stoull(line.substr(6));
  }
  throw Failure(FAILED, "/proc/self/status has no VmHWM; this needs Linux");
}

// --- ExecuTorch ---------------------------------------------------------------------------------

// ExecuTorch's first error message; later messages are consequences of the first.
std::string first_error;

void log(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t,
         const char* message, size_t length) {
  if (!first_error.empty() || (level != kError && level != kFatal)) return;
  first_error.assign(message, length);
  // The message may quote bytes of a damaged file.
  const auto unprintable = [](char c) { return c < ' ' || c > '~'; };
  std::replace_if(first_error.begin(), first_error.end(), unprintable, '?');
}

[[noreturn]] void fail(ExitCode code, const std::string& line) {
  std::fprintf(stderr, "error: %s\n", line.c_str());
  std::_Exit(code);
}

void abort_handler() { fail(FAILED, "ExecuTorch aborted: " + first_error); }

void check(runtime::Error error, ExitCode code, const std::string& what) {
  if (error == runtime::Error::Ok) return;
  const std::string name = std::string(runtime::to_string(error)).substr(sizeof("Error::") - 1);
  throw Failure(code, what + ": " + name + (first_error.empty() ? "" : ", " + first_error));
}

// Checks that the program takes one float32 input of at least the given sizes.
void check_fits(Module& module, const Options& options) {
  const auto meta = module.method_meta("forward");
  check(meta.error(), BAD_INPUT, options.model);
  const auto input = meta->input_tensor_meta(0), output = meta->output_tensor_meta(0);
  if (meta->num_inputs() != 1 || meta->num_outputs() != 1 || !input.ok() || !output.ok() ||
      input->scalar_type() != ScalarType::Float || output->scalar_type() != ScalarType::Float) {
    throw Failure(BAD_INPUT, options.model + " does not map one float32 tensor to another");
  }
  const auto& shape = options.shape;
  const std::vector<SizesType> limits(input->sizes().begin(), input->sizes().end());
  if (shape.size() != limits.size() ||
      !std::equal(shape.begin(), shape.end(), limits.begin(), std::less_equal<>())) {
    throw Failure(BAD_INPUT, options.model + " takes inputs up to " + written(limits) + ", not " +
                                 written(shape));
  }
}

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

Report run(const Options& options) {
  auto numbers = read(options.input, options.shape);
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(options.threads);

  const auto start = Clock::now();
  Module module(options.model, Module::LoadMode::Mmap);
  const auto failure = options.model + " cannot be loaded";
  check(module.load(runtime::Program::Verification::InternalConsistency), BAD_INPUT, failure);
  check(module.load_forward(), BAD_INPUT, failure);
  const double load_ms = milliseconds_since(start);
  check_fits(module, options);

  const auto input = executorch::extension::from_blob(numbers.data(), options.shape);
  const auto forward = [&] {
    auto outputs = module.forward(input);
    check(outputs.error(), FAILED, options.model + " fails on shape " + written(options.shape));
    return outputs->at(0).toTensor();
  };
  Tensor output = forward();  // not timed, because the first run allocates and fills caches
  std::vector<double> times;
  for (int round = 0; round < options.rounds; ++round) {
    const auto begin = Clock::now();
    output = forward();
    times.push_back(milliseconds_since(begin));
  }
  write(options.output, output);
  std::sort(times.begin(), times.end());
  return {load_ms, times[times.size() / 2], {output.sizes().begin(), output.sizes().end()}};
}

}  // namespace

int main(int count, char** arguments) {
  runtime::PalImpl pal = runtime::PalImpl::create(log, __FILE__);
  pal.abort = abort_handler;
  runtime::register_pal(pal);
  try {
    const Options options = parse(count, arguments);
    const Report report = run(options);
    std::printf(
        R"({"load_ms": %.3f, "run_ms": %.3f, "rounds": %d, "threads": %d, "shape": %s, )"
        R"("peak_memory_bytes": %llu})"
        "\n",
        report.load_ms, report.run_ms, options.rounds, options.threads,
        written(report.shape).c_str(), static_cast<unsigned long long>(peak_memory()));
  } catch (const Failure& failure) {
    fail(failure.code, failure.what());
  } catch (const std::exception& error) {
    fail(FAILED, error.what());
  }
}
