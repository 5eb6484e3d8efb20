// The options of a call of the operator, read from its one attribute: `key=value` pairs; those left out have their default.
#ifndef GLUON_KL_CALL_H_
#define GLUON_KL_CALL_H_

#include <errno.h>
#include <locale.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "job.h"

namespace gluon_kl {

enum Reduction { kSum, kMeanOver, kNone, kRow, kRowMean };

// The arrays of a call: the streams of its form, its weight, and an anchor: the result, a column of zeros, of a call
// without a value, through which that one gets the gradient of this one's result. What stands in for their ranks while
// MXNet infers shapes is not looked at. The index has the categories that a teacher kept.
enum Slot { kWeight = kInputs, kAnchor, kRank, kIndex, kSlots };

struct Call {
  Form form = kKL;
  std::vector<int> inputs = {kPred, kTarget};  // the slot of each input in its order
  unsigned grad = 1 << kPred;                  // slots, as bits
  Space space[2] = {kLogProbs, kProbs};
  int axis = -1, batch_axis = 0;
  Reduction reduction = kSum;
  double scale = 1, epsilon = 1e-12, temperature = 1, beta = 0.5, skew = 0.5;
  bool dense = false;
  double ignore_label = NAN, label_smoothing = 0;  // NAN: no class is ignored
  double hard_weight = 0, prior_mean = 0, prior_log_variance = NAN, target_value = NAN, free_nats = 0;  // NAN: not given
  bool spread_is_std = false, keep = true, value = true;
  Tail tail = kWholeTeacher;

  size_t position(int slot) const {  // among the inputs, or behind them
    return std::find(inputs.begin(), inputs.end(), slot) - inputs.begin();
  }
  bool has(int slot) const { return position(slot) < inputs.size(); }
  bool gaussian() const { return form == kGaussian; }
  bool pair() const { return form != kGaussian && form != kBernoulli; }
};

namespace parsing {

inline std::invalid_argument unfit(const std::string& key, const std::string& allowed, const std::string& text) {
  return std::invalid_argument(key + " must be " + allowed + ", not " + text);
}
// Independent of the process's locale, which may write decimals with a comma. Subnormal numbers are accepted, although
// strtod reports an error for them.
inline double number(const std::string& key, const std::string& text) {
  static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
  char* end = nullptr;
  const double x = strtod_l(text.c_str(), &end, plain);
  if (text.empty() || *end || !std::isfinite(x)) throw unfit(key, "a finite number", text);
  return x;
}
inline int integer(const std::string& key, const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long x = strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || errno || x < std::numeric_limits<int>::min() || x > std::numeric_limits<int>::max())
    throw unfit(key, "a whole number", text);
  return static_cast<int>(x);
}
template <class Choices> auto choice(const std::string& key, const std::string& text, const Choices& choices) {
  std::string allowed;
  for (const auto& c : choices) {
    if (text == c.first) return c.second;
    allowed += (allowed.empty() ? "" : ", ") + std::string(c.first);
  }
  throw unfit(key, "one of " + allowed, text);
}
inline bool flag(const std::string& key, const std::string& text) {
  return choice(key, text, std::map<std::string, bool>{{"0", false}, {"1", true}});
}
inline std::vector<int> slots(const std::string& key, const std::string& text) {
  static const std::map<std::string, int> names = {
      {"pred", kPred}, {"target", kTarget}, {"hard", kHard}, {"weight", kWeight}, {"anchor", kAnchor}, {"index", kIndex}, {"mean", kMean},
      {"log_variance", kLogVariance}, {"prior_mean", kPriorMean}, {"prior_log_variance", kPriorLogVariance},
      {"rank_of_pred", kRank}, {"rank_of_hard", kRank}, {"rank_of_weight", kRank}, {"tie", kRank}};
  std::vector<int> found;
  std::istringstream parts(text);
  for (std::string name; std::getline(parts, name, ',');)
    if (name != "-") found.push_back(choice(key, name.substr(0, name.find(':')), names));
  return found;
}
inline double between(double low, double high, const std::string& key, double x) {
  if (!(x > low && x < high))
    throw std::invalid_argument(key + " must lie between " + std::to_string(low) + " and " + std::to_string(high));
  return x;
}

inline std::map<std::string, std::string> words_of(const std::string& text) {
  std::map<std::string, std::string> given;
  std::istringstream words(text);
  words.imbue(std::locale::classic());
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) throw std::invalid_argument("`" + word + "` is no key=value");
    given[word.substr(0, equals)] = word.substr(equals + 1);
  }
  return given;
}
inline Space space(const Call& c, const std::string& key, const std::string& text) {
  using Spaces = std::map<std::string, Space>;
  if (c.form == kBernoulli) return choice(key, text, Spaces{{"probs", kProbs}, {"logits", kLogits}});
  return choice(key, text, Spaces{{"probs", kProbs}, {"log_probs", kLogProbs}, {"logits", kLogits}});
}
// The numbers of a call, by their names; and whether a key is one of them.
inline bool set_number(Call* c, const std::string& key, const std::string& x) {
  if (key == "scale") c->scale = number(key, x);
  else if (key == "epsilon") c->epsilon = between(0, 2, key, number(key, x));
  else if (key == "temperature") c->temperature = between(0, std::numeric_limits<double>::max(), key, number(key, x));
  else if (key == "beta") c->beta = between(0, 1, key, number(key, x));
  else if (key == "skew") c->skew = between(0, 1, key, number(key, x));
  else if (key == "ignore_label") c->ignore_label = number(key, x);
  else if (key == "label_smoothing") c->label_smoothing = between(0, 1, key, number(key, x));
  else if (key == "hard_weight") c->hard_weight = number(key, x);
  else if (key == "prior_mean") c->prior_mean = number(key, x);
  else if (key == "prior_log_variance") c->prior_log_variance = number(key, x);
  else if (key == "target_value") c->target_value = number(key, x);
  else if (key == "free_nats") c->free_nats = number(key, x);
  else return false;
  return true;
}
inline void set_choice(Call* c, const std::string& key, const std::string& x) {
  using Flags = std::map<std::string, bool>;
  if (key == "inputs") c->inputs = slots(key, x);
  else if (key == "grad") {
    c->grad = 0;
    for (int slot : slots(key, x)) c->grad |= 1 << slot;
  }
  else if (key == "pred") c->space[0] = space(*c, key, x);
  else if (key == "target") c->space[1] = space(*c, key, x);
  else if (key == "axis") c->axis = integer(key, x);
  else if (key == "batch_axis") c->batch_axis = integer(key, x);
  else if (key == "reduction")
    c->reduction = choice(key, x, std::map<std::string, Reduction>{{"sum", kSum}, {"mean", kMeanOver}, {"none", kNone},
                                                                   {"row", kRow}, {"row_mean", kRowMean}});
  else if (key == "hard") c->dense = choice(key, x, Flags{{"index", false}, {"dense", true}});
  else if (key == "tail")
    c->tail = choice(key, x, std::map<std::string, Tail>{{"bucket", kBucket}, {"renormalize", kRenormalize}, {"drop", kDrop}});
  else if (key == "spread") c->spread_is_std = choice(key, x, Flags{{"log_variance", false}, {"std", true}});
  else if (key == "keep") c->keep = flag(key, x);
  else if (key == "value") c->value = flag(key, x);
  else throw std::invalid_argument("there is no `" + key + "`");
}
inline void check_inputs(const Call& c) {
  if (!c.has(kPred)) throw std::invalid_argument(c.gaussian() ? "inputs must name mean" : "inputs must name pred");
  if (c.gaussian() && !c.has(kLogVariance)) throw std::invalid_argument("inputs must name log_variance");
  if (c.pair() && !c.has(kTarget) && !c.has(kHard)) throw std::invalid_argument("inputs must name target, hard or both");
  if (c.form == kBernoulli && !c.has(kTarget) && std::isnan(c.target_value))
    throw std::invalid_argument("inputs must name target, or target_value give it");
  if (!c.pair() && c.reduction == kRow) throw std::invalid_argument("reduction=row needs a form with categories");
  if (c.has(kIndex) != (c.tail != kWholeTeacher)) throw std::invalid_argument("index and tail go together");
  if (!c.pair() || !c.has(kHard)) return;
  if (c.dense && (c.label_smoothing != 0 || !std::isnan(c.ignore_label)))
    throw std::invalid_argument("ignore_label and label_smoothing are for class indices, not for hard=dense");
  if (c.space[0] != kLogits) throw std::invalid_argument("pred must be logits where hard is among the inputs");
  if (c.grad & (1 << kTarget | (c.dense ? 0 : 1 << kHard)))
    throw std::invalid_argument("where hard is among the inputs, gradients go to pred, to weight, and to hard if that is dense");
}

inline Call read(const std::string& text) {
  std::map<std::string, std::string> given = words_of(text);
  Call c;
  const std::string form = given.count("form") ? given["form"] : "kl";
  c.form = choice("form", form, std::map<std::string, Form>{
      {"kl", kKL}, {"reverse_kl", kReverseKL}, {"js", kJS}, {"skew_kl", kSkewKL}, {"skew_reverse_kl", kSkewReverseKL},
      {"tv", kTotalVariation}, {"gaussian", kGaussian}, {"bernoulli", kBernoulli}});
  if (c.form == kBernoulli) c.space[0] = kLogits;
  given.erase("form");
  for (const auto& entry : given)
    if (!set_number(&c, entry.first, entry.second)) set_choice(&c, entry.first, entry.second);
  check_inputs(c);
  if (c.pair() && !c.has(kTarget)) c.form = kCrossEntropy, c.hard_weight = 1;
  return c;
}

}  // namespace parsing

// The number of calls that are remembered. A program has few, or one with a number that changes all the time.
constexpr size_t kCalls = 256;

// Each text is parsed once, as long as it is remembered.
inline std::shared_ptr<const Call> call_of(const std::string& text) {
  static std::mutex* const mutex = new std::mutex;  // never destroyed: MXNet may run operators while a process ends
  static auto* const known = new std::unordered_map<std::string, std::shared_ptr<const Call>>;
  std::lock_guard<std::mutex> lock(*mutex);
  const auto found = known->find(text);
  if (found != known->end()) return found->second;
  auto call = std::make_shared<const Call>(parsing::read(text));
  if (known->size() >= kCalls) known->clear();  // those in use live on in other threads
  known->emplace(text, call);
  return call;
}

}  // namespace gluon_kl
#endif  // GLUON_KL_CALL_H_
