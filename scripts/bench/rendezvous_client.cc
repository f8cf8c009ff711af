// Simulated Horovod workers: the rendezvous of N processes without the processes.
//
// Each worker is a thread that does what GlooContext::Initialize of Horovod 0.28.1 does with its HTTPStore: blocking
// sockets, one connection per request, six full meshes, a poll every 10 ms while a key is "not found", three tries 500 ms
// apart. What gloo does over its own sockets happens in memory, waits included: the side of a pair that listens goes on
// when the other side has connected, and a mesh ends with a barrier. Nothing here trains.
//
// stdin:  one worker a line: NAME HOSTNAME RANK SIZE LOCAL_RANK LOCAL_SIZE CROSS_RANK CROSS_SIZE GENERATION ADDRESS
//         (ADDRESS is the value of HOROVOD_GLOO_RENDEZVOUS_ADDR; the port variable counts as "0")
// stdout: NAME REQUESTS NOT_FOUND RETRIES BYTES, when the worker is through
// Exit status 3, with a line on stderr, as soon as one worker would have aborted or got a value that nobody put.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kAddressBytes = 136;  // gloo: a sockaddr_storage and a sequence number
constexpr size_t kReadBytes = 4096;    // as HTTPRequest.hpp reads
constexpr auto kPoll = std::chrono::milliseconds(10);
constexpr auto kRetry = std::chrono::milliseconds(500);
constexpr int kTries = 3;

[[noreturn]] void Abort(const std::string& why) {
  fprintf(stderr, "rendezvous_client: %s\n", why.c_str());
  _exit(3);
}

// ---- what gloo does over sockets of its own ---------------------------------------------------------------------

// The pairs of one context of one generation.
class Mesh {
 public:
  explicit Mesh(int size) : size_(size), connected_(size_t(size) * size), wakes_(size) {}

  // Horovod connects pairs in order of rank; the one with the lower address listens and waits for the other.
  void Connect(int self, int peer, bool listens) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (listens) {
      wakes_[self].wait(lock, [&] { return connected_[size_t(self) * size_ + peer]; });
    } else {
      connected_[size_t(peer) * size_ + self] = true;
      wakes_[peer].notify_one();
    }
  }

  void Barrier() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (++arrived_ == size_) {
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return arrived_ == size_; });
    }
  }

 private:
  const int size_;
  int arrived_ = 0;
  std::mutex mutex_;
  std::vector<bool> connected_;  // [listener][connector]
  std::vector<std::condition_variable> wakes_;
  std::condition_variable all_;
};

std::shared_ptr<Mesh> MeshOf(const std::string& name, int size) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<Mesh>> meshes;
  std::lock_guard<std::mutex> lock(mutex);
  auto& mesh = meshes[name];
  if (!mesh) mesh = std::make_shared<Mesh>(size);
  return mesh;
}

// The port on which `self` listens for `peer`: any, but the same for whoever works it out.
uint16_t PortOf(const std::string& mesh, int self, int peer) {
  uint64_t mixed = std::hash<std::string>{}(mesh) ^ (uint64_t(self) << 32 | uint64_t(uint32_t(peer)));
  mixed = (mixed ^ (mixed >> 29)) * 0xbf58476d1ce4e5b9ULL;
  mixed = (mixed ^ (mixed >> 32)) * 0x94d049bb133111ebULL;
  return uint16_t(32768 + (mixed >> 40) % 28232);
}

std::string AddressBytes(uint16_t port, int self) {
  sockaddr_storage storage{};
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(0x0a000000u + uint32_t(self));
  memcpy(&storage, &address, sizeof(address));
  std::string bytes(reinterpret_cast<const char*>(&storage), sizeof(storage));
  return bytes.append(kAddressBytes - sizeof(storage), '\xff');  // no sequence number
}

// ---- HTTP, as HTTPRequest.hpp speaks it ---------------------------------------------------------------------------

struct Reply {
  int status = 0;
  std::string body;
};

class Socket {
 public:
  Socket() : number_(socket(AF_INET, SOCK_STREAM, 0)) {}
  ~Socket() {
    if (number_ >= 0) close(number_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int number() const { return number_; }

 private:
  const int number_;
};

// Status and body of one request on a connection of its own; false where HTTPRequest.hpp throws, or is cut short.
bool Send(const sockaddr_in& server, const std::string& text, Reply* reply) {
  Socket socket;
  if (connect(socket.number(), reinterpret_cast<const sockaddr*>(&server), sizeof(server)) < 0) return false;
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t some = send(socket.number(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (some < 0) return false;
    sent += size_t(some);
  }
  char buffer[kReadBytes];
  std::string got;
  size_t body = std::string::npos, length = 0;
  while (body == std::string::npos || got.size() - body < length) {
    const ssize_t some = recv(socket.number(), buffer, sizeof(buffer), 0);
    if (some <= 0) return false;
    got.append(buffer, size_t(some));
    if (body != std::string::npos) continue;
    const size_t end = got.find("\r\n\r\n");
    if (end == std::string::npos) continue;
    const size_t header = got.find("\r\nContent-Length:");
    if (header == std::string::npos || header > end) return false;
    length = strtoul(got.c_str() + header + 17, nullptr, 10);
    body = end + 4;
    got.reserve(body + length);
  }
  const size_t space = got.find(' ');
  reply->status = space < body ? atoi(got.c_str() + space) : 0;
  reply->body = got.substr(body);
  return true;
}

// ---- a worker -------------------------------------------------------------------------------------------------------

class Worker {
 public:
  // Whether `line` describes a worker.
  bool Parse(const std::string& line) {
    std::istringstream in(line);
    std::string address;
    in >> name_ >> hostname_ >> rank_ >> size_ >> local_rank_ >> local_size_ >> cross_rank_ >> cross_size_ >>
        generation_ >> address;
    const size_t colon = address.find(':'), slash = address.find('/');
    if (!in || colon == std::string::npos || slash == std::string::npos || colon > slash) return false;
    domain_ = address.substr(0, colon);
    path_ = address.substr(slash) + ":0/";
    server_.sin_family = AF_INET;
    server_.sin_port = htons(uint16_t(atoi(address.c_str() + colon + 1)));
    return inet_pton(AF_INET, domain_.c_str(), &server_.sin_addr) == 1;
  }

  void Run() {
    CheckPlace(Request("GET", "rank_and_size/" + hostname_ + ":" + std::to_string(local_rank_)));
    const std::string local = "local_" + hostname_, cross = "cross_" + std::to_string(local_rank_);
    for (const std::string suffix : {"", "_process_set_hash_5a"}) {
      Rendezvous("global" + suffix, rank_, size_);
      Rendezvous(local + suffix, local_rank_, local_size_);
      Rendezvous(cross + suffix, cross_rank_, cross_size_);
    }
    std::ostringstream out;
    out << name_ << ' ' << requests_ << ' ' << not_found_ << ' ' << retries_ << ' ' << bytes_ << '\n';
    const std::string line = out.str();
    if (write(STDOUT_FILENO, line.data(), line.size()) != ssize_t(line.size())) Abort("nobody reads stdout");
  }

 private:
  // gloo's connectFullMesh, then Horovod's barrier and HTTPStore::Finalize.
  void Rendezvous(const std::string& scope, int rank, int size) {
    // Contexts of one worker have the same scope everywhere, and meet nobody.
    const std::string name = scope + "#" + std::to_string(generation_) + (size == 1 ? name_ : "");
    const auto mesh = MeshOf(name, size);
    const std::string prefix = scope + "/";
    Request("PUT", prefix + "rank_" + std::to_string(rank), hostname_);
    for (int i = 0; i < rank; i++) Request("GET", prefix + "rank_" + std::to_string(i));
    std::string all;
    for (int i = 0; i < size; i++) {
      if (i != rank) all += AddressBytes(PortOf(name, rank, i), rank);
    }
    Request("PUT", prefix + std::to_string(rank), all);
    for (int i = 0; i < size; i++) {
      if (i == rank) continue;
      const std::string key = prefix + std::to_string(i);
      while (Request("GET", key).status != 200) std::this_thread::sleep_for(kPoll);
      CheckAddresses(Request("GET", key).body, name, i, rank, size);
      mesh->Connect(rank, i, Listens(name, rank, i));
    }
    mesh->Barrier();
    Request("DELETE", prefix + std::to_string(rank));
  }

  static bool Listens(const std::string& mesh, int self, int peer) {
    const uint16_t ours = PortOf(mesh, self, peer), theirs = PortOf(mesh, peer, self);
    return ours != theirs ? ours < theirs : self < peer;
  }

  // `body` is what `peer` has put, which is seen at the place that gloo takes out of it.
  void CheckAddresses(const std::string& body, const std::string& mesh, int peer, int self, int size) {
    const size_t at = size_t(self < peer ? self : self - 1) * kAddressBytes;
    if (body.size() != size_t(size - 1) * kAddressBytes ||
        body.compare(at, kAddressBytes, AddressBytes(PortOf(mesh, peer, self), peer)) != 0) {
      Abort(name_ + ": " + std::to_string(body.size()) + " bytes that rank " + std::to_string(peer) + " of " + mesh +
            " has not put");
    }
  }

  void CheckPlace(const Reply& reply) {
    std::ostringstream place;
    place << rank_ << ',' << size_ << ',' << local_rank_ << ',' << local_size_ << ',' << cross_rank_ << ',' << cross_size_;
    if (reply.status != 200 || reply.body != place.str()) Abort(name_ + ": place is " + reply.body + ", not " + place.str());
  }

  Reply Request(const std::string& method, const std::string& key, const std::string& body = "") {
    const std::string text = method + " " + path_ + key + " HTTP/1.1\r\nHost: " + domain_ +
                             "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    for (int i = 0; i < kTries; i++) {
      Reply reply;
      requests_++;
      if (Send(server_, text, &reply) && (reply.status == 200 || reply.status == 404)) {
        not_found_ += reply.status == 404;
        bytes_ += reply.body.size();
        return reply;
      }
      retries_++;
      std::this_thread::sleep_for(kRetry);
    }
    Abort(name_ + ": " + method + " " + key + " failed " + std::to_string(kTries) + " times");
  }

  std::string name_, hostname_, domain_, path_;
  sockaddr_in server_{};
  int rank_ = 0, size_ = 0, local_rank_ = 0, local_size_ = 0, cross_rank_ = 0, cross_size_ = 0, generation_ = 0;
  long requests_ = 0, not_found_ = 0, retries_ = 0;
  size_t bytes_ = 0;
};

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (std::string line; std::getline(std::cin, line);) {
    auto worker = std::make_shared<Worker>();
    if (!worker->Parse(line)) Abort("not a worker: " + line);
    threads.emplace_back([worker] { worker->Run(); });
  }
  for (auto& thread : threads) thread.join();
  return 0;
}
