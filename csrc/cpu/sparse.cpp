// A sparse fill generates each word once. One bit per element marks the words below a narrow window
// around the column's expected threshold: these elements are zero. The few words inside the window
// are stored, the threshold is selected among them, and they are marked too. Then normal values and
// zeros are written in cache-sized pieces. No result depends on which thread does what, because
// (word, row) is a total order.
#include "sparse.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <vector>

#include "fill.h"
#include "parallel.h"

namespace paraminit {
namespace {

// Elements that are filled and then zeroed while they are in the cache.
constexpr int64_t kPiece = 6 * kBlockMultiple;
// Lanes that a thread counts at a time, few enough that their candidate lists stay in its cache.
constexpr int64_t kLaneBlock = 2 * kBlockMultiple;
// Memory limit per thread for the candidate lists of a panel, which stay in the cache.
constexpr int64_t kPanelBytes = int64_t(1) << 20;
// Memory limit for the bits of the columns that are written together. At least one block of columns
// is, even if it needs more.
constexpr int64_t kBitsBytes = int64_t(16) << 20;
// Least number of (folded) rows in a chunk. Each chunk has its own candidate lists.
constexpr int64_t kMinChunkRows = 64;
// With at most this many rows, no window is used: each word is compared with every other word.
constexpr int64_t kSmallRows = 64;

// Generates the raw words of the request's word key.
class WordGenerator {
 public:
  explicit WordGenerator(const SparseRequest& request) {
    request_.distribution = Distribution::kWords;
    request_.type = ElementType::kWord32;
    request_.keys = request.word_keys;
    fill_ = fill_kernels(request_).fill;
    fill_one_ = baseline::fill_kernels(request_).fill;
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
  decltype(FillKernels::fill) fill_, fill_one_;
};

// Columns [first, first + width), one or more lanes per column. If the panel has all columns of the
// global matrix and they are few, `fold` consecutive rows form one folded row: lane f * width + c
// has rows f, f + fold, ... of column c.
struct Panel {
  int64_t first, width, fold;
  int64_t chunks, chunk_rows;  // chunk_rows counts folded rows
  int64_t capacity;            // of the candidate list of one lane in one chunk

  int64_t lanes() const { return width * fold; }
  int64_t blocks() const { return (lanes() + kLaneBlock - 1) / kLaneBlock; }
  int64_t bytes() const { return lanes() * chunks * (capacity + 1) * 8; }
};
static_assert(kLaneBlock % 64 == 0 && kSmallLanes % 64 == 0);

Panel plan_panel(const SparseRequest& r, const Window& window, int64_t first, int64_t width) {
  Panel p{first, width, 1, 1, r.rows, 0};
  if (r.rows <= kSmallRows) return p;
  if (width == r.columns && width < kLaneBlock) {
    p.fold = std::min(r.rows, (kLaneBlock + width - 1) / width);
  }
  const int64_t folded_rows = (r.rows + p.fold - 1) / p.fold;
  // Several units per thread, so that other threads can take over the work of a slow one.
  const int64_t units = 4 * thread_pool().count();
  p.chunks = std::max<int64_t>(
      1, std::min((units + p.blocks() - 1) / p.blocks(), folded_rows / kMinChunkRows));
  p.chunk_rows = (folded_rows + p.chunks - 1) / p.chunks;
  p.chunks = (folded_rows + p.chunk_rows - 1) / p.chunk_rows;
  p.capacity = window_capacity(window, p.chunk_rows);
  return p;
}

// Marks the zeros of a panel's columns among the rows of the shard.
class ZeroSearch {
 public:
  ZeroSearch(const SparseRequest& request, const WordGenerator& words, const Window& window)
      : request_(request), words_(words), window_(window), kernels_(column_kernels()) {}

  // Columns [first, first + width) of the global matrix.
  void run(int64_t first, int64_t width) {
    first_ = first;
    const Panel whole = plan_panel(request_, window_, first, width);
    fold_ = whole.fold;
    lanes_ = whole.lanes();
    first_row_ = request_.shard.row / fold_;
    last_row_ = (request_.shard.row + request_.shard.rows + fold_ - 1) / fold_;
    // As many words as the kernels write: select_small() writes whole blocks.
    const int64_t written = request_.rows <= kSmallRows ? kSmallLanes : 64;
    row_words_ = (lanes_ + written - 1) / written * (written / 64);
    // One more word, so that a reader may read past the last bit.
    reserve(bits_, bits_size_, (last_row_ - first_row_) * row_words_ + 1);
    const int64_t panels = whole.bytes() / (kPanelBytes * thread_pool().count()) + 1;
    const int64_t blocks = (whole.blocks() + panels - 1) / panels;
    const int64_t panel_width = fold_ > 1 ? width : blocks * kLaneBlock;
    for (int64_t done = 0; done < width; done += panel_width) {
      search(plan_panel(request_, window_, first + done, std::min(panel_width, width - done)));
    }
  }

  int64_t fold() const { return fold_; }
  int64_t first() const { return first_; }
  int64_t lanes() const { return lanes_; }
  // The bits of a folded row that contains a row of the shard, one per lane: set for zeros.
  const uint64_t* row_bits(int64_t folded_row) const { return stored_bits(folded_row); }

 private:
  // Memory that is not initialised: page faults are left to the threads that write to it.
  static void reserve(std::unique_ptr<uint64_t[]>& memory, int64_t& size, int64_t wanted) {
    if (wanted <= size) return;
    memory.reset();
    memory = std::make_unique_for_overwrite<uint64_t[]>(static_cast<size_t>(wanted));
    size = wanted;
  }
  // Packs a candidate, so that integers compare in the order of (word, row).
  static uint64_t pair_of(uint32_t word, int64_t row) {
    return uint64_t{word} << 32 | static_cast<uint64_t>(row);
  }
  void search(const Panel& panel) {
    panel_ = panel;
    const int64_t lists = panel.lanes() * panel.chunks;
    not_below_.assign(static_cast<size_t>(lists), 0);
    counts_.assign(static_cast<size_t>(lists), 0);
    reserve(lists_, lists_size_, lists * panel.capacity);
    const auto for_each_unit = [](int64_t count, int64_t elements, const auto& work) {
      run_on_threads(count, elements, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) work(unit);
      });
    };
    if (request_.rows <= kSmallRows) {
      for_each_unit((panel.width + kSmallLanes - 1) / kSmallLanes, kSmallLanes * request_.rows,
                    [&](int64_t block) { select_small(block * kSmallLanes); });
    } else {
      for_each_unit(panel.blocks() * panel.chunks, kLaneBlock * panel.chunk_rows,
                    [&](int64_t unit) { count(unit % panel.blocks(), unit / panel.blocks()); });
      // A unit is 64 columns, the bits of one 64-bit word of a row. Only in folded rows do units
      // share words; mark() is then atomic.
      for_each_unit((panel.width + 63) / 64, 64 * request_.rows, [&](int64_t unit) {
        for (int64_t c = unit * 64; c < std::min(unit * 64 + 64, panel.width); ++c) select(c);
      });
    }
  }
  size_t list_index(int64_t chunk, int64_t lane) const {
    return static_cast<size_t>(chunk * panel_.lanes() + lane);
  }
  uint64_t index_of(int64_t row, int64_t column) const {
    return static_cast<uint64_t>(row) * static_cast<uint64_t>(request_.columns) +
           static_cast<uint64_t>(panel_.first + column);
  }
  bool is_stored(int64_t folded_row) const {
    return folded_row >= first_row_ && folded_row < last_row_;
  }
  uint64_t* stored_bits(int64_t folded_row) const {
    return bits_.get() + (folded_row - first_row_) * row_words_;
  }
  // The bits of a folded row, from the first lane of the panel on.
  uint64_t* panel_bits(int64_t folded_row) const {
    return stored_bits(folded_row) + (panel_.first - first_) / 64;
  }
  void mark(int64_t row, int64_t column, bool zero) const {
    const int64_t fold = panel_.fold;
    if (fold == 1) {
      if (is_stored(row)) set_bit(panel_bits(row)[column / 64], column % 64, zero);
    } else if (is_stored(row / fold)) {
      const int64_t lane = row % fold * panel_.width + column;
      // Other threads set other bits of the same word.
      const std::atomic_ref<uint64_t> word(panel_bits(row / fold)[lane / 64]);
      uint64_t old = word.load(std::memory_order_relaxed), wanted;
      do {
        wanted = old;
        set_bit(wanted, lane % 64, zero);
      } while (!word.compare_exchange_weak(old, wanted, std::memory_order_relaxed));
    }
  }
  static void set_bit(uint64_t& word, int64_t bit, bool value) {
    word = (word & ~(uint64_t{1} << bit)) | uint64_t{value} << bit;
  }

  void count(int64_t block, int64_t chunk) {
    const Panel& p = panel_;
    const int64_t first_lane = block * kLaneBlock;
    uint32_t* const not_below = &not_below_[list_index(chunk, first_lane)];
    uint32_t* const counts = &counts_[list_index(chunk, 0)];
    uint64_t* const lists = lists_.get() + list_index(chunk, 0) * static_cast<size_t>(p.capacity);
    alignas(64) uint32_t words[kLaneBlock];
    uint64_t unused[kLaneBlock / 64];
    Candidates<kLaneBlock> candidates;
    const int64_t first_row = chunk * p.chunk_rows * p.fold;
    const int64_t last_row = std::min(first_row + p.chunk_rows * p.fold, request_.rows);
    for (int64_t row = first_row; row < last_row; row += p.fold) {
      // The last folded row may be incomplete.
      const int64_t lanes = std::min(p.fold, request_.rows - row) * p.width - first_lane;
      if (lanes <= 0) break;
      const int64_t length = std::min(lanes, kLaneBlock);
      words_(index_of(row, first_lane), length, words);
      uint64_t* const below =
          is_stored(row / p.fold) ? panel_bits(row / p.fold) + first_lane / 64 : unused;
      const int64_t n = kernels_.count(words, length, window_.low, window_.high, not_below, below,
                                       candidates.positions, candidates.words);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t lane = first_lane + candidates.positions[i];
        const int64_t slot = counts[lane]++;
        // select() detects the overflow of a list by its count.
        if (slot < p.capacity) {
          lists[lane * p.capacity + slot] = pair_of(candidates.words[i], row + lane / p.width);
        }
      }
    }
  }

  // Returns the rank-th smallest candidate. Words are spread evenly over the window, so a histogram
  // leaves few of them to compare.
  uint64_t nth_candidate(const std::vector<uint64_t>& candidates, int64_t rank) const {
    constexpr int bins = 128;
    const int shift = std::max(0, static_cast<int>(std::bit_width(window_.high - window_.low)) - 7);
    const auto bin_of = [&](uint64_t c) {
      return (static_cast<uint32_t>(c >> 32) - window_.low) >> shift;
    };
    uint32_t histogram[bins] = {};
    for (const uint64_t c : candidates) ++histogram[bin_of(c)];
    uint32_t bin = 0;
    for (; rank >= histogram[bin]; ++bin) rank -= histogram[bin];
    thread_local std::vector<uint64_t> in_bin;
    in_bin.clear();
    for (const uint64_t c : candidates) {
      if (bin_of(c) == bin) in_bin.push_back(c);
    }
    std::nth_element(in_bin.begin(), in_bin.begin() + rank, in_bin.end());
    return in_bin[static_cast<size_t>(rank)];
  }

  void select(int64_t column) {
    const Panel& p = panel_;
    thread_local std::vector<uint64_t> candidates;
    int64_t below = request_.rows;  // words below the window
    bool complete = true;
    candidates.clear();
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
      for (int64_t lane = column; lane < p.lanes(); lane += p.width) {
        const size_t list = list_index(chunk, lane);
        const int64_t count = counts_[list];
        below -= not_below_[list];
        complete = complete && count <= p.capacity;
        const uint64_t* const first = lists_.get() + list * static_cast<size_t>(p.capacity);
        candidates.insert(candidates.end(), first, first + std::min(count, p.capacity));
      }
    }
    const int64_t rank = request_.zeros - 1 - below;
    if (!complete || rank < 0 || rank >= static_cast<int64_t>(candidates.size())) {
      search_whole_column(column, candidates);
      return;
    }
    const uint64_t threshold = nth_candidate(candidates, rank);
    for (const uint64_t c : candidates) {
      mark(static_cast<int64_t>(c & 0xFFFFFFFFu), column, c <= threshold);
    }
  }

  void select_small(int64_t first_lane) {
    alignas(64) uint32_t words[kSmallRows * kSmallLanes] = {};
    uint32_t selected[kSmallLanes], at_most[kSmallLanes];
    const int64_t length = std::min<int64_t>(panel_.width - first_lane, kSmallLanes);
    for (int64_t row = 0; row < request_.rows; ++row) {
      words_(index_of(row, first_lane), length, words + row * kSmallLanes);
    }
    kernels_.select_small(words, request_.rows, static_cast<uint32_t>(request_.zeros), selected,
                          at_most);
    for (int64_t row = first_row_; row < last_row_; ++row) {
      kernels_.compare_small(words + row * kSmallLanes, selected,
                             panel_bits(row) + first_lane / 64);
    }
    // Of equal words, those in the last rows are not zero if the column has enough zeros.
    for (int64_t lane = 0; lane < length; ++lane) {
      int64_t excess = at_most[lane] - request_.zeros;
      for (int64_t row = request_.rows - 1; excess > 0; --row) {
        if (words[row * kSmallLanes + lane] != selected[lane]) continue;
        mark(row, first_lane + lane, false);
        --excess;
      }
    }
  }

  // Called if the threshold is not in the window or a list overflowed. A histogram over the high 16
  // bits of the column's words finds the bin of the threshold, and a second pass selects it among
  // the words in that bin. A third pass marks every element again.
  void search_whole_column(int64_t column, std::vector<uint64_t>& candidates) const {
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
      if (word >> 16 == bin) candidates.push_back(pair_of(word, row));
    }
    const auto threshold = candidates.begin() + rank;
    std::nth_element(candidates.begin(), threshold, candidates.end());
    const int64_t last = request_.shard.row + request_.shard.rows;
    for (int64_t row = request_.shard.row; row < last; ++row) {
      mark(row, column, pair_of(words_(index_of(row, column)), row) <= *threshold);
    }
  }

  const SparseRequest& request_;
  const WordGenerator& words_;
  const Window window_;
  const ColumnKernels kernels_;
  int64_t first_ = 0, fold_ = 1, lanes_ = 0;  // of all columns of the run
  int64_t first_row_ = 0, last_row_ = 0;      // folded rows with bits
  int64_t row_words_ = 0;                     // of 64 bits, in the bits of a folded row
  Panel panel_{};                             // the columns that are searched now
  std::vector<uint32_t> not_below_, counts_;  // one element per list
  std::unique_ptr<uint64_t[]> bits_, lists_;  // candidates, `capacity` per list
  int64_t bits_size_ = 0, lists_size_ = 0;
};

// Writes the values and zeros of consecutive elements.
class SparseWriter {
 public:
  SparseWriter(const SparseRequest& request, const ZeroSearch& search)
      : request_(request),
        search_(search),
        element_bytes_(element_size(request.values.type) * request.parts),
        period_(static_cast<uint64_t>(search.fold() * request.columns)),
        first_(static_cast<uint64_t>(search.first())),
        fill_(fill_kernels(request.values).fill) {
    const ColumnKernels kernels = column_kernels();
    zero_ = element_bytes_ == 2   ? kernels.zero16
            : element_bytes_ == 4 ? kernels.zero32
            : element_bytes_ == 8 ? kernels.zero64
                                  : kernels.zero128;
  }

  // `index` and `count` are in real numbers. If the matrix is complex, both are even.
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
    for (int64_t done = 0; done < length;) {
      const uint64_t at = element + static_cast<uint64_t>(done);
      const int64_t lane = static_cast<int64_t>(at % period_ - first_);
      const int64_t part = std::min(length - done, search_.lanes() - lane);
      zero_(search_.row_bits(static_cast<int64_t>(at / period_)), lane, part,
            to + done * element_bytes_);
      done += part;
    }
  }

  const SparseRequest& request_;
  const ZeroSearch& search_;
  const int64_t element_bytes_;
  // Element e of the global matrix is in lane e % period_ - first_ of folded row e / period_.
  const uint64_t period_, first_;
  const decltype(FillKernels::fill) fill_;
  decltype(ColumnKernels::zero32) zero_;
};

}  // namespace

void sparse_cpu(const SparseRequest& request, const int64_t (&strides)[2], void* data) {
  const Rectangle& shard = request.shard;
  const Window window = threshold_window(request.rows, request.zeros, request.spread);
  const WordGenerator words(request);
  ZeroSearch search(request, words, window);
  const int64_t size = element_size(request.values.type);
  const int64_t bytes = shard.rows * shard.columns * request.parts * size;
  if (bytes >= kLargeFill && strides[1] == request.parts &&
      strides[0] == shard.columns * request.parts) {
    ask_for_huge_pages(data, static_cast<size_t>(bytes));
  }
  const int64_t most = kBitsBytes * 8 / shard.rows / kLaneBlock * kLaneBlock;
  const int64_t width = std::min(shard.columns, std::max(most, kLaneBlock));
  for (int64_t done = 0; done < shard.columns; done += width) {
    const int64_t columns = std::min(width, shard.columns - done);
    search.run(shard.column + done, columns);
    const int dims = request.parts == 1 ? 2 : 3;
    const int64_t sizes[] = {shard.rows, columns, 2};
    const int64_t real_strides[] = {strides[0], strides[1], 1};
    const int64_t global_sizes[] = {request.rows, request.columns, 2};
    const int64_t shard_offset[] = {shard.row, shard.column + done, 0};
    write_tensor(SparseWriter(request, search), size,
                 make_geometry(dims, sizes, real_strides, global_sizes, shard_offset),
                 static_cast<char*>(data) + done * strides[1] * size);
  }
}

}  // namespace paraminit
