// Command decisions is Knative's autoscaler arithmetic on standard input and output: statistics and ticks in, decisions
// out, one JSON object a line. The windows are those of pkg/autoscaler/metrics, the decisions those of
// pkg/autoscaler/scaling; time is what the lines say, counted from a base that the answer to "new" names.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/scaling"
)

var key = types.NamespacedName{Namespace: "ns", Name: "rev"}

// line is one input: op is new, spec, stat, ready or tick, and says which of the other fields count.
type line struct {
	Op string  `json:"op"`
	At float64 `json:"at"` // seconds since the base

	Ready int `json:"ready"`

	Concurrency        float64 `json:"concurrency"`
	ProxiedConcurrency float64 `json:"proxied_concurrency"`
	Requests           float64 `json:"requests"`
	ProxiedRequests    float64 `json:"proxied_requests"`

	Spec      scaling.DeciderSpec `json:"spec"`
	Windows   v1alpha1.MetricSpec `json:"windows"`
	Algorithm string              `json:"algorithm"`
}

type decision struct {
	Want   int32 `json:"want"`
	Excess int32 `json:"excess"`
	Valid  bool  `json:"valid"`
}

type pods int

func (p *pods) ReadyCount() (int, error)    { return int(*p), nil }
func (p *pods) NotReadyCount() (int, error) { return 0, nil }

// unscraped: whatever is recorded comes from the input.
func unscraped(*v1alpha1.Metric, *zap.SugaredLogger) (metrics.StatsScraper, error) {
	return nil, nil
}

func main() {
	logger := zap.NewNop().Sugar()
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)

	var (
		collector *metrics.MetricCollector
		scaler    scaling.UniScaler
		ready     pods
		base      time.Time
	)
	for in.Scan() {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			log.Fatalf("%s: %v", in.Text(), err)
		}
		now := base.Add(time.Duration(l.At * float64(time.Second)))
		switch l.Op {
		case "new":
			if collector != nil {
				collector.Delete(key.Namespace, key.Name)
			}
			ready = pods(l.Ready)
			collector = metrics.NewMetricCollector(unscraped, logger)
			metric := &v1alpha1.Metric{
				ObjectMeta: metav1.ObjectMeta{
					Namespace:   key.Namespace,
					Name:        key.Name,
					Annotations: map[string]string{autoscaling.MetricAggregationAlgorithmKey: l.Algorithm},
				},
				Spec: l.Windows,
			}
			if err := collector.CreateOrUpdate(metric); err != nil {
				log.Fatal(err)
			}
			// A new scaler takes the time of its birth from the clock; whole seconds make it ours, too.
			base = time.Now().Truncate(time.Second)
			spec := l.Spec
			scaler = scaling.New(*attribute.EmptySet(), noop.NewMeterProvider(), key.Namespace, key.Name,
				collector, &ready, &spec)
			must(out.Encode(map[string]int64{"base": base.Unix()}))
		case "spec":
			spec := l.Spec
			scaler.Update(&spec)
		case "ready":
			ready = pods(l.Ready)
		case "stat":
			collector.Record(key, now, metrics.Stat{
				AverageConcurrentRequests:        l.Concurrency,
				AverageProxiedConcurrentRequests: l.ProxiedConcurrency,
				RequestCount:                     l.Requests,
				ProxiedRequestCount:              l.ProxiedRequests,
			})
		case "tick":
			result := scaler.Scale(logger, now)
			must(out.Encode(decision{result.DesiredPodCount, result.ExcessBurstCapacity, result.ScaleValid}))
		default:
			log.Fatalf("unknown op %q", l.Op)
		}
	}
	must(in.Err())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
