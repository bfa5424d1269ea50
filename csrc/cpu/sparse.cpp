// A sparse fill in three steps a panel of columns: count the words below a narrow window around
// each column's expected threshold and keep the few inside it; pick the threshold among those; then
// write the normal fill and its zeros, piece by piece in the cache. Which thread counts or writes
// what decides nothing: (word, row) is a total order.
#include "sparse.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "fill.h"
#include "units.h"

namespace paraminit {
namespace {

// Elements of a run whose words stand on the stack.
constexpr int64_t kPiece = 6 * kWholeBlocks;
// Columns that one thread counts at a time: their lists stay in its cache.
constexpr int64_t kLaneBlock = 2 * kWholeBlocks;
// What the lists of a panel may take: all columns of a square of some 5,000, fewer of a larger
// matrix.
constexpr int64_t kPanelBytes = int64_t(16) << 20;
// Rows that are worth lists of their own.
constexpr int64_t kLeastChunk = 64;
// Columns of so few rows need no window: each word is compared with every other.
constexpr int64_t kSmallRows = 64;

// Raw words of the fill's second key.
class Words {
 public:
  explicit Words(const SparseRequest& request) {
    request_.distribution = Distribution::kWords;
    request_.type = ElementType::kWord32;
    request_.keys = request.word_keys;
    fill_ = run_functions(request_).fill;
    fill_one_ = baseline::run_functions(request_).fill;
  }
  void operator()(uint64_t index, int64_t count, uint32_t* words) const {
    fill_(request_, index, count, words);
  }
  uint32_t operator()(uint64_t index) const {
    uint32_t word;
    fill_one_(request_, index, 1, &word);
    return word;
  }

 private:
  FillRequest request_{};
  decltype(RunFunctions::fill) fill_, fill_one_;
};

// The columns from `first` on, side by side as lanes. Where all columns of the whole are here and
// they are few, `fold` rows make one: lane `f width + c` holds rows f, f + fold, ... of column c.
struct Panel {
  int64_t first, width, fold;
  int64_t chunks, chunk_strips;  // folded rows
  int64_t capacity;              // of the list of a lane in a chunk

  int64_t lanes() const { return width * fold; }
  int64_t blocks() const { return (lanes() + kLaneBlock - 1) / kLaneBlock; }
  int64_t bytes() const { return lanes() * chunks * (capacity + 2) * 4; }
};

Panel plan_panel(const SparseRequest& r, const Window& window, int64_t first, int64_t width) {
  Panel p{first, width, 1, 1, r.rows, 0};
  if (r.rows <= kSmallRows) return p;
  if (width == r.columns && width < kLaneBlock) {
    p.fold = std::min(r.rows, (kLaneBlock + width - 1) / width);
  }
  const int64_t strips = (r.rows + p.fold - 1) / p.fold;
  // Enough for every thread, and for one that falls behind.
  const int64_t wanted = 4 * thread_pool().count();
  p.chunks =
      std::max<int64_t>(1, std::min((wanted + p.blocks() - 1) / p.blocks(), strips / kLeastChunk));
  p.chunk_strips = (strips + p.chunks - 1) / p.chunks;
  p.chunks = (strips + p.chunk_strips - 1) / p.chunk_strips;
  p.capacity = window_capacity(window, p.chunk_strips);
  return p;
}

// Finds the thresholds of a panel's columns.
class Search {
 public:
  Search(const SparseRequest& request, const Words& words, const Window& window)
      : request_(request), words_(words), window_(window), functions_(column_functions()) {}

  // thresholds[lane]: the element is zero where its word is not above it, but for `spared`, the
  // indices of those of the same word in a later row.
  void run(const Panel& panel) {
    panel_ = panel;
    const size_t lists = static_cast<size_t>(panel.lanes() * panel.chunks);
    up_to_.assign(lists, 0);
    counts_.assign(lists, 0);
    found_.resize(lists * static_cast<size_t>(panel.capacity));
    thresholds.resize(static_cast<size_t>(panel.lanes()));
    spared.clear();
    const auto each = [](int64_t count, int64_t elements, const auto& work) {
      run_on_threads(count, elements, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) work(unit);
      });
    };
    if (request_.rows <= kSmallRows) {
      each((panel.width + kSmallLanes - 1) / kSmallLanes, kSmallLanes * request_.rows,
           [&](int64_t block) { select_small(block * kSmallLanes); });
    } else {
      each(panel.blocks() * panel.chunks, kLaneBlock * panel.chunk_strips,
           [&](int64_t unit) { count(unit % panel.blocks(), unit / panel.blocks()); });
      each(panel.width, request_.rows, [&](int64_t column) { select(column); });
    }
    std::sort(spared.begin(), spared.end());
  }

  std::vector<uint32_t> thresholds;
  std::vector<uint64_t> spared;

 private:
  size_t list(int64_t chunk, int64_t lane) const {
    return static_cast<size_t>(chunk * panel_.lanes() + lane);
  }
  uint64_t index_of(int64_t row, int64_t column) const {
    return static_cast<uint64_t>(row) * static_cast<uint64_t>(request_.columns) +
           static_cast<uint64_t>(panel_.first + column);
  }

  void count(int64_t block, int64_t chunk) {
    const Panel& p = panel_;
    const int64_t first_lane = block * kLaneBlock;
    uint32_t* const up_to = &up_to_[list(chunk, first_lane)];
    uint32_t* const counts = &counts_[list(chunk, 0)];
    uint32_t* const found = found_.data() + list(chunk, 0) * static_cast<size_t>(p.capacity);
    alignas(64) uint32_t words[kLaneBlock];
    Found inside[kLaneBlock];
    const int64_t first_row = chunk * p.chunk_strips * p.fold;
    const int64_t last_row = std::min(first_row + p.chunk_strips * p.fold, request_.rows);
    for (int64_t row = first_row; row < last_row; row += p.fold) {
      // The last rows may be too few to make a whole one.
      const int64_t lanes = std::min(p.fold, request_.rows - row) * p.width - first_lane;
      if (lanes <= 0) break;
      const int64_t length = std::min(lanes, kLaneBlock);
      words_(index_of(row, first_lane), length, words);
      const int64_t n = functions_.count(words, length, window_.low, window_.high, up_to, inside);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t lane = first_lane + inside[i].position;
        const int64_t at = counts[lane]++;
        // A list that is too short is seen by select().
        if (at < p.capacity) found[lane * p.capacity + at] = inside[i].word;
      }
    }
  }

  void select(int64_t column) {
    const Panel& p = panel_;
    thread_local std::vector<uint32_t> candidates;
    int64_t below = 0;  // the window
    bool complete = true;
    candidates.clear();
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
      for (int64_t lane = column; lane < p.lanes(); lane += p.width) {
        const size_t l = list(chunk, lane);
        const int64_t count = counts_[l];
        below += up_to_[l] - count;
        complete = complete && count <= p.capacity;
        const auto first = found_.begin() + static_cast<int64_t>(l) * p.capacity;
        candidates.insert(candidates.end(), first, first + std::min(count, p.capacity));
      }
    }
    int64_t rank = request_.zeros - 1 - below;
    if (!complete || rank < 0 || rank >= static_cast<int64_t>(candidates.size())) {
      rank = gather_whole(column, candidates);
    }
    const auto threshold = candidates.begin() + rank;
    std::nth_element(candidates.begin(), threshold, candidates.end());
    const uint32_t word = *threshold;
    for (int64_t lane = column; lane < p.lanes(); lane += p.width) {
      thresholds[static_cast<size_t>(lane)] = word;
    }
    int64_t excess = std::count(threshold + 1, candidates.end(), word);
    for (int64_t row = request_.rows - 1; excess > 0; --row) {
      if (words_(index_of(row, column)) != word) continue;
      spare(row, column);
      --excess;
    }
  }

  void select_small(int64_t first_lane) {
    alignas(64) uint32_t words[kSmallRows * kSmallLanes] = {};
    uint32_t found[kSmallLanes], up_to[kSmallLanes];
    const int64_t length = std::min<int64_t>(panel_.width - first_lane, kSmallLanes);
    for (int64_t row = 0; row < request_.rows; ++row) {
      words_(index_of(row, first_lane), length, words + row * kSmallLanes);
    }
    functions_.select_small(words, request_.rows, static_cast<uint32_t>(request_.zeros), found,
                            up_to);
    std::copy(found, found + length, &thresholds[static_cast<size_t>(first_lane)]);
    for (int64_t lane = 0; lane < length; ++lane) {
      int64_t excess = up_to[lane] - request_.zeros;
      for (int64_t row = request_.rows - 1; excess > 0; --row) {
        if (words[row * kSmallLanes + lane] != found[lane]) continue;
        spare(row, first_lane + lane);
        --excess;
      }
    }
  }

  void spare(int64_t row, int64_t column) {
    const std::lock_guard<std::mutex> lock(spared_mutex_);
    spared.push_back(index_of(row, column));
  }

  // The window missed: a histogram of the whole column's words says which 2^16 of them hold the
  // threshold. Returns its rank among those.
  int64_t gather_whole(int64_t column, std::vector<uint32_t>& candidates) const {
    std::vector<int64_t> histogram(1 << 16);
    for (int64_t row = 0; row < request_.rows; ++row) {
      ++histogram[words_(index_of(row, column)) >> 16];
    }
    int64_t rank = request_.zeros - 1;
    uint32_t bin = 0;
    for (; rank >= histogram[bin]; ++bin) rank -= histogram[bin];
    candidates.clear();
    for (int64_t row = 0; row < request_.rows; ++row) {
      const uint32_t word = words_(index_of(row, column));
      if (word >> 16 == bin) candidates.push_back(word);
    }
    return rank;
  }

  const SparseRequest& request_;
  const Words& words_;
  const Window window_;
  const ColumnFunctions functions_;
  Panel panel_{};
  std::vector<uint32_t> up_to_, counts_;
  std::vector<uint32_t> found_;
  std::mutex spared_mutex_;
};

// Values and zeros of consecutive elements.
class Write {
 public:
  Write(const SparseRequest& request, const Words& words, const Search& search, const Panel& panel)
      : request_(request),
        words_(words),
        search_(search),
        panel_(panel),
        element_bytes_(element_size(request.values.type) * request.parts),
        period_(static_cast<uint64_t>(panel.width == request.columns ? panel.lanes()
                                                                     : request.columns)),
        first_(static_cast<uint64_t>(panel.first)),
        fill_(run_functions(request.values).fill) {
    const ColumnFunctions functions = column_functions();
    zero_ = element_bytes_ == 2   ? functions.zero16
            : element_bytes_ == 4 ? functions.zero32
            : element_bytes_ == 8 ? functions.zero64
                                  : functions.zero128;
  }

  // A run of a complex matrix begins and ends with whole elements, as its geometry does.
  void operator()(uint64_t index, int64_t count, void* out) const {
    uint64_t element = index / static_cast<uint64_t>(request_.parts);
    int64_t rest = count / request_.parts;
    for (char* to = static_cast<char*>(out); rest > 0;) {
      const int64_t length = std::min(rest, kPiece);
      fill_(request_.values, element * static_cast<uint64_t>(request_.parts),
            length * request_.parts, to);
      zero(element, length, to);
      to += length * element_bytes_;
      element += static_cast<uint64_t>(length);
      rest -= length;
    }
  }

 private:
  void zero(uint64_t element, int64_t length, char* to) const {
    alignas(64) uint32_t words[kPiece];
    words_(element, length, words);
    for (int64_t done = 0; done < length;) {
      const uint64_t place = (element + static_cast<uint64_t>(done)) % period_;
      const int64_t lane = static_cast<int64_t>(place - first_);
      const int64_t part = std::min(length - done, panel_.lanes() - lane);
      zero_(words + done, &search_.thresholds[static_cast<size_t>(lane)], part,
            to + done * element_bytes_);
      done += part;
    }
    if (!search_.spared.empty()) fill_spared(element, length, to);
  }

  void fill_spared(uint64_t element, int64_t length, char* to) const {
    const uint64_t end = element + static_cast<uint64_t>(length);
    const auto last = search_.spared.end();
    for (auto s = std::lower_bound(search_.spared.begin(), last, element); s != last && *s < end;
         ++s) {
      fill_(request_.values, *s * static_cast<uint64_t>(request_.parts), request_.parts,
            to + static_cast<int64_t>(*s - element) * element_bytes_);
    }
  }

  const SparseRequest& request_;
  const Words& words_;
  const Search& search_;
  const Panel& panel_;
  const int64_t element_bytes_;
  // Lane 0 of the panel stands at `first_` of every `period_` elements of the whole.
  const uint64_t period_, first_;
  const decltype(RunFunctions::fill) fill_;
  decltype(ColumnFunctions::zero32) zero_;
};

}  // namespace

void sparse_cpu(const SparseRequest& request, const int64_t (&strides)[2], void* data) {
  const Rectangle& held = request.held;
  const Window window = threshold_window(request.rows, request.zeros, request.spread);
  const Words words(request);
  Search search(request, words, window);
  const int64_t size = element_size(request.values.type);
  const int64_t bytes = held.rows * held.columns * request.parts * size;
  if (bytes >= kLargeFill && strides[1] == request.parts &&
      strides[0] == held.columns * request.parts) {
    ask_for_huge_pages(data, static_cast<size_t>(bytes));
  }
  const int64_t panels =
      plan_panel(request, window, held.column, held.columns).bytes() / kPanelBytes + 1;
  const int64_t width =
      std::max(std::min(held.columns, kLaneBlock), (held.columns + panels - 1) / panels);
  for (int64_t done = 0; done < held.columns; done += width) {
    const Panel panel =
        plan_panel(request, window, held.column + done, std::min(width, held.columns - done));
    search.run(panel);
    const int dims = request.parts == 1 ? 2 : 3;
    const int64_t sizes[] = {held.rows, panel.width, 2};
    const int64_t steps[] = {strides[0], strides[1], 1};
    const int64_t whole[] = {request.rows, request.columns, 2};
    const int64_t start[] = {held.row, panel.first, 0};
    write_tensor(Write(request, words, search, panel), size,
                 make_geometry(dims, sizes, steps, whole, start),
                 static_cast<char*>(data) + done * strides[1] * size);
  }
}

}  // namespace paraminit
