// f(u), u = weight · x̂ + bias, of images x (B, C, H, W) normalised over groups of channels (x̂); its gradients; and theirs.
// f is SiLU or, where `silu` is false, the identity.
//
// Each (image, group) is worked out by one thread while it lies in its cache. Sums run in float32, in an order that doesn't
// depend on the number of threads. The loops are plain, for the compiler to vectorise, once for each kind of processor; which
// version runs is decided on the processor that it runs on. The formulas are those of
// ebm/nets/group_norm_torch.py.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

using at::Tensor;
using Size = std::int64_t;
using BFloat16 = std::uint16_t;

INLINE float as_float(std::uint32_t i) {
  float f;
  std::memcpy(&f, &i, sizeof f);
  return f;
}

INLINE std::uint32_t as_bits(float f) {
  std::uint32_t i;
  std::memcpy(&i, &f, sizeof i);
  return i;
}

INLINE float load(float value) { return value; }
INLINE float load(BFloat16 value) { return as_float(static_cast<std::uint32_t>(value) << 16); }

INLINE void store(float& to, float value) { to = value; }
INLINE void store(BFloat16& to, float value) {  // to the nearest, ties to even
  const std::uint32_t bits = as_bits(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to = static_cast<BFloat16>(value == value ? rounded : 0x7fc0u);
}

INLINE float sigmoid(float u) {
  float y = u * -1.44269504f;  // exp(-u) = 2^y, of which the fraction's power is a polynomial: relative error 5e-9 + rounding
  y = y < 126.f ? y : 126.f;
  y = y > -126.f ? y : -126.f;
  const std::int32_t whole = static_cast<std::int32_t>(y + 128.5f) - 128;
  const float f = y - static_cast<float>(whole);
  float power = 1.54614478e-4f;
  power = power * f + 1.33908668e-3f;
  power = power * f + 9.61805694e-3f;
  power = power * f + 5.55035696e-2f;
  power = power * f + 2.40226507e-1f;
  power = power * f + 6.93147182e-1f;
  power = power * f + 1.f;
  power *= as_float(static_cast<std::uint32_t>(whole + 127) << 23);
  return 1.f / (1.f + power) + (u - u);  // u - u: NaN where u is not finite
}

// Asks for a row that is wanted soon: x and g were left long ago and are far away, and the processor doesn't see by itself
// which row comes next. That saves up to half of the time.
template <typename T>
INLINE void soon(const T* row, Size count) {
  constexpr Size line = 64 / sizeof(T);
  for (Size i = 0; i < count; i += line) __builtin_prefetch(row + i);
}

struct Shape {
  Size channels, pixels;  // of one group
  float eps;
  INLINE float count() const { return static_cast<float>(channels * pixels); }
};

struct Moments {
  float mean, rstd;
};

template <typename T>
INLINE Moments moments(const T* __restrict__ x, Shape shape) {
  const Size count = shape.channels * shape.pixels;
  float sum = 0, squares = 0;
  for (Size i = 0; i < count; ++i) sum += load(x[i]);
  const float mean = sum / shape.count();
  for (Size i = 0; i < count; ++i) {
    const float centred = load(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, 1.f / std::sqrt(squares / shape.count() + shape.eps)};
}

// y and the moments of one group
template <typename T, bool silu>
INLINE void forward(const T* __restrict__ x, const float* weight, const float* bias, T* __restrict__ y, Moments* found,
                    Shape shape) {
  const auto [mean, rstd] = *found = moments(x, shape);
  for (Size c = 0; c < shape.channels; ++c, x += shape.pixels, y += shape.pixels) {
    const float a = weight[c] * rstd, b = bias[c] - a * mean;
    soon(x + shape.channels * shape.pixels, shape.pixels);
    for (Size i = 0; i < shape.pixels; ++i) {
      const float u = a * load(x[i]) + b;
      store(y[i], silu ? u * sigmoid(u) : u);
    }
  }
}

// Gradients of ⟨g, y⟩ of one group, that in x on top of what comes to x another way (around, if not null);
// kept: room for its numbers
template <typename T, bool silu>
INLINE void backward(const T* __restrict__ g, const T* __restrict__ x, const float* weight, const float* bias,
                     const Moments* found, const T* __restrict__ around, T* __restrict__ dx, float* dweight, float* dbias,
                     float* __restrict__ kept, Shape shape) {
  const auto [mean, rstd] = *found;
  float along_1 = 0, along_x = 0;
  for (Size c = 0; c < shape.channels; ++c) {
    const T *__restrict__ gs = g + c * shape.pixels, *__restrict__ xs = x + c * shape.pixels;
    float* __restrict__ dus = kept + c * shape.pixels;
    const float a = weight[c] * rstd, b = bias[c] - a * mean;
    float du_1 = 0, du_x = 0;
    soon(gs + shape.pixels, shape.pixels);
    soon(xs + shape.pixels, shape.pixels);
    if (around != nullptr) soon(around + c * shape.pixels, shape.pixels);
    soon(dx + c * shape.pixels, shape.pixels);
    for (Size i = 0; i < shape.pixels; ++i) {
      const float at = load(xs[i]), u = a * at + b, s = silu ? sigmoid(u) : 1.f;
      const float du = load(gs[i]) * (s + u * s * (1.f - s));
      dus[i] = du;
      du_1 += du;
      du_x += du * (at - mean);
    }
    dbias[c] = du_1;
    dweight[c] = du_x * rstd;
    along_1 += weight[c] * dbias[c];
    along_x += weight[c] * dweight[c];
  }
  const float on_x = -rstd * rstd * along_x / shape.count(), level = -rstd * along_1 / shape.count() - on_x * mean;
  for (Size c = 0; c < shape.channels; ++c) {
    const T* __restrict__ xs = x + c * shape.pixels;
    const float* __restrict__ dus = kept + c * shape.pixels;
    T* __restrict__ dxs = dx + c * shape.pixels;
    const float on_du = weight[c] * rstd;
    if (around == nullptr) {
      for (Size i = 0; i < shape.pixels; ++i) store(dxs[i], on_du * dus[i] + (on_x * load(xs[i]) + level));
    } else {
      const T* __restrict__ others = around + c * shape.pixels;
      for (Size i = 0; i < shape.pixels; ++i) store(dxs[i], on_du * dus[i] + (on_x * load(xs[i]) + level) + load(others[i]));
    }
  }
}

// Gradients of ⟨g, f'(u) t⟩ of one group, t being how u moves as x, weight and bias move along vx, vw and vb.
// Sums over pixels end in _1, and in _x if weighted by x̂. `kept` has room for the group's numbers, `sums` for six a channel.
template <typename T, bool silu>
INLINE void second(const T* __restrict__ g, const T* __restrict__ x, const T* __restrict__ vx, const float* weight,
                   const float* bias, const Moments* found, const float* vw, const float* vb, T* __restrict__ dg,
                   T* __restrict__ dx, float* dweight, float* dbias, float* __restrict__ kept, float* sums, Shape shape) {
  const auto [mean, rstd] = *found;
  const float count = shape.count();
  float *vx_1s = sums, *vx_xs = vx_1s + shape.channels, *du_1s = vx_xs + shape.channels, *du_xs = du_1s + shape.channels;
  float *du_vs = du_xs + shape.channels, *curved_xs = du_vs + shape.channels;
  float level = 0, along = 0;
  for (Size c = 0; c < shape.channels; ++c) {
    const T *__restrict__ xs = x + c * shape.pixels, *__restrict__ vs = vx + c * shape.pixels;
    float sum = 0, sum_x = 0;
    soon(xs + shape.pixels, shape.pixels);
    soon(vs + shape.pixels, shape.pixels);
    soon(g + c * shape.pixels, shape.pixels);
    soon(dg + c * shape.pixels, shape.pixels);
    for (Size i = 0; i < shape.pixels; ++i) {
      const float v = load(vs[i]);
      sum += v;
      sum_x += v * (load(xs[i]) - mean);
    }
    vx_1s[c] = sum;
    vx_xs[c] = sum_x * rstd;
    level += vx_1s[c] / count;
    along += vx_xs[c] / count;
  }
  float mean_du = 0;  // of weight · du · x̂
  for (Size c = 0; c < shape.channels; ++c) {
    const T *__restrict__ gs = g + c * shape.pixels, *__restrict__ xs = x + c * shape.pixels;
    const T* __restrict__ vs = vx + c * shape.pixels;
    T* __restrict__ dgs = dg + c * shape.pixels;
    float* __restrict__ keep = kept + c * shape.pixels;
    const float w = weight[c], a = w * rstd, b = bias[c] - a * mean, on_du = vw[c] - a * along;
    const float on_x = on_du * rstd, constant = vb[c] - a * level - on_x * mean;
    float curved_1 = 0, curved_x = 0, du_1 = 0, du_x = 0, du_v = 0;
    soon(dx + c * shape.pixels, shape.pixels);
    for (Size i = 0; i < shape.pixels; ++i) {
      const float at = load(xs[i]), v = load(vs[i]), t = a * v + (on_x * at + constant);
      const float u = a * at + b, s = silu ? sigmoid(u) : 1.f;
      const float slope = s * (1.f - s), first = s + u * slope, second = slope * (2.f + u * (1.f - 2.f * s));
      const float gi = load(gs[i]), du = gi * first, curved = gi * second * t, centred = at - mean;
      store(dgs[i], first * t);
      keep[i] = w * curved + on_du * du;
      curved_1 += curved;
      curved_x += curved * centred;
      du_1 += du;
      du_x += du * centred;
      du_v += du * v;
    }
    dbias[c] = curved_1;
    curved_xs[c] = curved_x * rstd;
    du_1s[c] = du_1;
    du_xs[c] = du_x * rstd;
    du_vs[c] = du_v;
    mean_du += w * du_xs[c] / count;
  }
  // ⟨du, t⟩ moves with weight by ⟨du, rstd P(vx)⟩; with x̂ by on_normal, together with ⟨curved, u⟩; and with rstd.
  const float on_vx = -rstd * mean_du;
  float normal_1 = 0, normal_x = 0;
  for (Size c = 0; c < shape.channels; ++c) {
    const float on_du = vw[c] - rstd * along * weight[c], moved = rstd * (du_vs[c] - level * du_1s[c] - along * du_xs[c]);
    normal_1 += (weight[c] * dbias[c] + on_du * du_1s[c] + on_vx * vx_1s[c]) / count;
    normal_x += (weight[c] * (curved_xs[c] + moved) + on_du * du_xs[c] + on_vx * vx_xs[c]) / count;
    dweight[c] = curved_xs[c] + moved;
  }
  const float on_x = -rstd * rstd * normal_x, constant = -rstd * normal_1 - on_x * mean, on_v = rstd * on_vx;
  const Size numbers = shape.channels * shape.pixels;
  for (Size i = 0; i < numbers; ++i) {
    store(dx[i], rstd * kept[i] + on_v * load(vx[i]) + (on_x * load(x[i]) + constant));
  }
}

// The kernel with its arguments, in the version for this processor.
#if defined(__x86_64__)
template <auto kernel, typename... Arguments>
__attribute__((noinline, target("avx2,fma"))) void with_avx2(Arguments... arguments) {
  kernel(arguments...);
}

template <auto kernel, typename... Arguments>
__attribute__((noinline, target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) void with_avx512(Arguments... arguments) {
  kernel(arguments...);
}

int vectors() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? 512 : avx2 ? 256 : 128;
}

template <auto kernel, typename... Arguments>
void run(Arguments... arguments) {
  static const int width = vectors();
  if (width == 512) return with_avx512<kernel>(arguments...);
  if (width == 256) return with_avx2<kernel>(arguments...);
  kernel(arguments...);
}
#else
template <auto kernel, typename... Arguments>
void run(Arguments... arguments) {
  kernel(arguments...);
}
#endif

// What the three operations have in common: checked inputs, and a loop over (image, group).
class Groups {
 public:
  Groups(const Tensor& x, const Tensor& weight, const Tensor& bias, Size groups, double eps = 0)
      : like_(x), coefficients_(weight) {
    TORCH_CHECK(x.dim() == 4 && groups > 0 && x.size(1) % groups == 0, "norm_silu: x must be (B, C, H, W), C = groups · n");
    TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "norm_silu: x must be float32 or bfloat16");
    channels_ = x.size(1) / groups;
    pixels_ = x.size(2) * x.size(3);
    count_ = x.size(0) * groups;
    shape_ = {channels_, pixels_, static_cast<float>(eps)};
    coefficients(weight);
    coefficients(bias);
  }

  Tensor numbers(const Tensor& one) const {
    TORCH_CHECK(one.sizes() == like_.sizes() && one.scalar_type() == like_.scalar_type() && one.is_cpu(),
                "norm_silu: x, g and vx must have one shape and type");
    return one.contiguous();
  }

  Tensor numbers(const std::optional<Tensor>& one) const {
    return one.has_value() ? numbers(*one) : at::zeros(like_.sizes(), like_.options());
  }

  Tensor coefficients(const Tensor& one) const {
    TORCH_CHECK(one.dim() == 2 && one.size(0) == like_.size(0) && one.size(1) == like_.size(1) && one.is_cpu() &&
                one.scalar_type() == at::kFloat, "norm_silu: coefficients must be (B, C) in float32");
    return one.contiguous();
  }

  Tensor coefficients(const std::optional<Tensor>& one) const {
    return one.has_value() ? coefficients(*one) : at::zeros(coefficients_.sizes(), coefficients_.options());
  }

  Tensor result() const { return at::empty(like_.sizes(), like_.options()); }
  Tensor sums() const { return at::empty(coefficients_.sizes(), coefficients_.options()); }
  Tensor moments() const { return at::empty({count_, 2}, coefficients_.options()); }

  Tensor moments(const Tensor& one) const {
    TORCH_CHECK(one.dim() == 2 && one.size(0) == count_ && one.size(1) == 2 && one.is_cpu() && one.is_contiguous() &&
                one.scalar_type() == at::kFloat, "norm_silu: moments must be those of x");
    return one;
  }


  // work(first number, first channel, the group's shape, room for its numbers, room for six sums a channel)
  template <typename Work>
  void each(Size kept, const Work& work) const {
    const Size numbers = channels_ * pixels_;
    at::parallel_for(0, count_, numbers ? std::max<Size>(1, 16384 / numbers) : count_ + 1, [&](Size begin, Size end) {
      std::vector<float> room(kept ? numbers + 6 * channels_ : 0);
      for (Size i = begin; i < end; ++i) work(i * numbers, i * channels_, shape_, room.data(), room.data() + numbers);
    });
  }

  bool is_float() const { return like_.scalar_type() == at::kFloat; }

 private:
  const Tensor &like_, &coefficients_;
  Size channels_, pixels_, count_;
  Shape shape_;
};

template <typename T>
T* data(const Tensor& one) {
  return static_cast<T*>(one.data_ptr());
}

// work(a pointer of the numbers' type, whether with SiLU as a type)
template <typename Work>
void typed(const Groups& groups, bool silu, const Work& work) {
  const auto with = [&](auto* type) { silu ? work(type, std::true_type()) : work(type, std::false_type()); };
  groups.is_float() ? with(static_cast<float*>(nullptr)) : with(static_cast<BFloat16*>(nullptr));
}

std::tuple<Tensor, Tensor> norm_silu(const Tensor& x, const Tensor& weight, const Tensor& bias, Size count, double eps,
                                     bool with_silu) {
  const Groups groups(x, weight, bias, count, eps);
  const Tensor xs = groups.numbers(x), ws = groups.coefficients(weight), bs = groups.coefficients(bias), y = groups.result();
  const Tensor found = groups.moments();
  typed(groups, with_silu, [&](auto* type, auto choice) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr bool silu = decltype(choice)::value;
    groups.each(0, [&](Size i, Size c, Shape shape, float*, float*) {
      run<forward<T, silu>>(data<T>(xs) + i, data<float>(ws) + c, data<float>(bs) + c, data<T>(y) + i,
                            data<Moments>(found) + c / shape.channels, shape);
    });
  });
  return {y, found};
}

std::tuple<Tensor, Tensor, Tensor> norm_silu_backward(const Tensor& g, const Tensor& x, const Tensor& weight,
                                                      const Tensor& bias, const Tensor& moments,
                                                      const std::optional<Tensor>& around, Size count, bool with_silu) {
  const Groups groups(x, weight, bias, count);
  const Tensor gs = groups.numbers(g), xs = groups.numbers(x), ws = groups.coefficients(weight), bs = groups.coefficients(bias);
  const Tensor dx = groups.result(), dw = groups.sums(), db = groups.sums();
  const Tensor found = groups.moments(moments), others = around.has_value() ? groups.numbers(*around) : Tensor();
  typed(groups, with_silu, [&](auto* type, auto choice) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr bool silu = decltype(choice)::value;
    groups.each(1, [&](Size i, Size c, Shape shape, float* kept, float*) {
      const T* other = others.defined() ? data<T>(others) + i : nullptr;
      run<backward<T, silu>>(data<T>(gs) + i, data<T>(xs) + i, data<float>(ws) + c, data<float>(bs) + c,
                             data<Moments>(found) + c / shape.channels, other, data<T>(dx) + i, data<float>(dw) + c,
                             data<float>(db) + c, kept, shape);
    });
  });
  return {dx, dw, db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_silu_second(
    const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& moments,
    const std::optional<Tensor>& vx, const std::optional<Tensor>& vw, const std::optional<Tensor>& vb, Size count,
    bool with_silu) {
  const Groups groups(x, weight, bias, count);
  const Tensor found = groups.moments(moments);
  const Tensor gs = groups.numbers(g), xs = groups.numbers(x), ws = groups.coefficients(weight), bs = groups.coefficients(bias);
  const Tensor vxs = groups.numbers(vx), vws = groups.coefficients(vw), vbs = groups.coefficients(vb);
  const Tensor dg = groups.result(), dx = groups.result(), dw = groups.sums(), db = groups.sums();
  typed(groups, with_silu, [&](auto* type, auto choice) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr bool silu = decltype(choice)::value;
    groups.each(1, [&](Size i, Size c, Shape shape, float* kept, float* sums) {
      run<second<T, silu>>(data<T>(gs) + i, data<T>(xs) + i, data<T>(vxs) + i, data<float>(ws) + c, data<float>(bs) + c,
              data<Moments>(found) + c / shape.channels, data<float>(vws) + c, data<float>(vbs) + c, data<T>(dg) + i,
              data<T>(dx) + i, data<float>(dw) + c, data<float>(db) + c, kept, sums, shape);
    });
  });
  return {dg, dx, dw, db};
}

}  // namespace

TORCH_LIBRARY(ebm, library) {
  library.def("norm_silu(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu)"
              " -> (Tensor y, Tensor moments)");
  library.def("norm_silu_backward(Tensor g, Tensor x, Tensor weight, Tensor bias, Tensor moments, Tensor? around,"
              " int groups, bool silu) -> (Tensor dx, Tensor dweight, Tensor dbias)");
  library.def("norm_silu_second(Tensor g, Tensor x, Tensor weight, Tensor bias, Tensor moments, Tensor? vx,"
              " Tensor? vw, Tensor? vb, int groups, bool silu) -> (Tensor dg, Tensor dx, Tensor dweight, Tensor dbias)");
}

TORCH_LIBRARY_IMPL(ebm, CPU, library) {
  library.impl("norm_silu", norm_silu);
  library.impl("norm_silu_backward", norm_silu_backward);
  library.impl("norm_silu_second", norm_silu_second);
}

TORCH_LIBRARY_IMPL(ebm, Autograd, library) {  // they are derivatives written out: one more is refused, not left out
  for (const char* name : {"norm_silu", "norm_silu_backward", "norm_silu_second"}) {
    library.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
