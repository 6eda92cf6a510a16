package service

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/metering"
	"github.com/boughdb/bough/internal/storage"
)

// metrics is what GET /metrics shows. It implements control.Recorder and proxy.Meter.
type metrics struct {
	registry   *prometheus.Registry
	operations *prometheus.HistogramVec
	wakes      *prometheus.HistogramVec
	sessions   prometheus.Gauge
	accepted   prometheus.Counter
	bytes      *prometheus.CounterVec
	repairs    *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bough_operation_seconds", Help: "Duration of operations' last attempts.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}, []string{"action", "status"}),
		wakes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bough_wake_seconds", Help: "Time from a client's request for a sleeping compute until it accepts connections.",
			Buckets: prometheus.ExponentialBuckets(0.01, 1.6, 14),
		}, []string{"result"}),
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bough_connections", Help: "Authenticated client sessions."}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{Name: "bough_connections_total", Help: "Client sessions that authenticated."}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bough_transfer_bytes_total", Help: "Bytes of the Postgres protocol through the proxy.",
		}, []string{"direction"}),
	}
	m.repairs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bough_repairs_total", Help: "Repaired differences between what should be and what is.",
	}, []string{"kind"})
	m.registry.MustRegister(m.operations, m.wakes, m.sessions, m.accepted, m.bytes, m.repairs,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watch adds what is read when somebody looks.
func (m *metrics) watch(c *lookCollector) {
	m.registry.MustRegister(c)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// OperationEnded implements control.Recorder.
func (m *metrics) OperationEnded(action core.OperationAction, status core.OperationStatus, took time.Duration) {
	m.operations.WithLabelValues(string(action), string(status)).Observe(took.Seconds())
}

// Woken implements control.Recorder.
func (m *metrics) Woken(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.wakes.WithLabelValues(result).Observe(took.Seconds())
}

// Repaired implements control.Recorder.
func (m *metrics) Repaired(kind string) { m.repairs.WithLabelValues(kind).Inc() }

// SessionOpened implements proxy.Meter.
func (m *metrics) SessionOpened(string) { m.sessions.Inc(); m.accepted.Inc() }

// SessionClosed implements proxy.Meter.
func (m *metrics) SessionClosed(string) { m.sessions.Dec() }

// Transferred implements proxy.Meter.
func (m *metrics) Transferred(_ string, fromClient, toClient int64) {
	m.bytes.WithLabelValues("from_client").Add(float64(fromClient))
	m.bytes.WithLabelValues("to_client").Add(float64(toClient))
}

// doorMeter counts what passes the door for the metrics and for the usage of branches.
type doorMeter struct {
	*metrics
	usage *metering.Meter
}

// Transferred implements proxy.Meter.
func (d doorMeter) Transferred(endpointID string, fromClient, toClient int64) {
	d.metrics.Transferred(endpointID, fromClient, toClient)
	if toClient > 0 {
		d.usage.Transferred(endpointID, toClient)
	}
}

// lookCollector reads gauges at every scrape.
type lookCollector struct {
	ctx       context.Context // the collector's interface has none
	computes  *compute.Manager
	pool      *storage.Pool
	endpoints func(ctx context.Context) (map[string]int, error)
	drifts    func() map[string]int
	replicas  func() map[string]control.ReplicaLag
	meter     *metering.Meter
	history   func() control.HistorySum
}

var (
	computesDesc = prometheus.NewDesc("bough_computes", "Endpoints by the state of their compute.", []string{"state"}, nil)
	runningDesc  = prometheus.NewDesc("bough_compute_processes", "Computes that run.", nil, nil)
	driftDesc    = prometheus.NewDesc("bough_drift", "Differences between what should be and what is, seen by the last look and the one before; see bough doctor.", []string{"kind"}, nil)
	sizeDesc     = prometheus.NewDesc("bough_compute_size_cu", "Size of a running compute, in compute units.", []string{"endpoint"}, nil)
	scaledDesc   = prometheus.NewDesc("bough_autoscale_total", "Changes of computes' sizes by their load.", []string{"direction"}, nil)
	queuedDesc   = prometheus.NewDesc("bough_compute_starts_queued", "Starts of computes that wait for their turn.", nil, nil)
	lagBytesDesc = prometheus.NewDesc("bough_replica_lag_bytes", "WAL of the primary that a running replica has not replayed.", []string{"endpoint"}, nil)
	lagDesc      = prometheus.NewDesc("bough_replica_lag_seconds", "Age of the oldest change that a running replica has not replayed.", []string{"endpoint"}, nil)
	countsDesc   = prometheus.NewDesc("bough_metering_total", "Counts of usage by their result.", []string{"result"}, nil)
	activeDesc   = prometheus.NewDesc("bough_usage_active_seconds_total", "Time that computes ran, as counted by this server.", nil, nil)
	computeDesc  = prometheus.NewDesc("bough_usage_compute_unit_seconds_total", "The same, times their size.", nil, nil)
	writtenDesc  = prometheus.NewDesc("bough_usage_written_bytes_total", "WAL of branches, as counted by this server.", nil, nil)
	snapshotDesc = prometheus.NewDesc("bough_history_snapshots", "Snapshots kept for branches of past moments.", nil, nil)
	archiveDesc  = prometheus.NewDesc("bough_history_wal_bytes", "WAL archived for branches of past moments.", nil, nil)
	squeezeDesc  = prometheus.NewDesc("bough_history_windows_halved", "How often the windows of all projects are halved, because space is short.", nil, nil)
	deletingDesc = prometheus.NewDesc("bough_storage_deleting_volumes", "Deleted volumes whose space is not free yet.", nil, nil)
	freeDesc     = prometheus.NewDesc("bough_storage_free_bytes", "Free space.", []string{"place"}, nil)
)

// scrapeTimeout bounds what a scrape asks the control database.
const scrapeTimeout = 2 * time.Second

// Describe implements prometheus.Collector.
func (c *lookCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- computesDesc
	ch <- runningDesc
	ch <- sizeDesc
	ch <- scaledDesc
	ch <- queuedDesc
	ch <- freeDesc
	ch <- deletingDesc
	ch <- driftDesc
	ch <- lagBytesDesc
	ch <- lagDesc
	ch <- countsDesc
	ch <- activeDesc
	ch <- computeDesc
	ch <- writtenDesc
	ch <- snapshotDesc
	ch <- archiveDesc
	ch <- squeezeDesc
}

// Collect implements prometheus.Collector.
func (c *lookCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.ctx, scrapeTimeout)
	defer cancel()
	for kind, n := range c.drifts() {
		ch <- prometheus.MustNewConstMetric(driftDesc, prometheus.GaugeValue, float64(n), kind)
	}
	sizes := c.computes.Sizes()
	ch <- prometheus.MustNewConstMetric(runningDesc, prometheus.GaugeValue, float64(len(sizes)))
	for endpoint, cu := range sizes {
		ch <- prometheus.MustNewConstMetric(sizeDesc, prometheus.GaugeValue, cu, endpoint)
	}
	up, down := c.computes.Autoscaled()
	ch <- prometheus.MustNewConstMetric(scaledDesc, prometheus.CounterValue, float64(up), "up")
	ch <- prometheus.MustNewConstMetric(scaledDesc, prometheus.CounterValue, float64(down), "down")
	ch <- prometheus.MustNewConstMetric(queuedDesc, prometheus.GaugeValue, float64(c.computes.Queued()))
	if states, err := c.endpoints(ctx); err == nil {
		for state, n := range states {
			ch <- prometheus.MustNewConstMetric(computesDesc, prometheus.GaugeValue, float64(n), state)
		}
	}
	for id, lag := range c.replicas() {
		ch <- prometheus.MustNewConstMetric(lagBytesDesc, prometheus.GaugeValue, float64(lag.Bytes), id)
		ch <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, lag.Delay.Seconds(), id)
	}
	counted := c.meter.Counted()
	ch <- prometheus.MustNewConstMetric(countsDesc, prometheus.CounterValue, float64(counted.Counts-counted.Failures), "ok")
	ch <- prometheus.MustNewConstMetric(countsDesc, prometheus.CounterValue, float64(counted.Failures), "error")
	ch <- prometheus.MustNewConstMetric(activeDesc, prometheus.CounterValue, counted.Active.Seconds())
	ch <- prometheus.MustNewConstMetric(computeDesc, prometheus.CounterValue, counted.Compute.Seconds())
	ch <- prometheus.MustNewConstMetric(writtenDesc, prometheus.CounterValue, float64(counted.Written))
	history := c.history()
	ch <- prometheus.MustNewConstMetric(snapshotDesc, prometheus.GaugeValue, float64(history.Snapshots))
	ch <- prometheus.MustNewConstMetric(archiveDesc, prometheus.GaugeValue, float64(history.WAL))
	ch <- prometheus.MustNewConstMetric(squeezeDesc, prometheus.GaugeValue, float64(history.Squeeze))
	if n, err := c.pool.Deleting(ctx); err == nil {
		ch <- prometheus.MustNewConstMetric(deletingDesc, prometheus.GaugeValue, float64(n))
	}
	if s, err := c.pool.Space(ctx); err == nil {
		ch <- prometheus.MustNewConstMetric(freeDesc, prometheus.GaugeValue, float64(s.Host.Free), "host")
		ch <- prometheus.MustNewConstMetric(freeDesc, prometheus.GaugeValue, float64(s.Pool.Free), "pool")
	}
}
