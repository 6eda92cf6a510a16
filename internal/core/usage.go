package core

import "time"

// Usage is what a branch or a project used in a time frame.
type Usage struct {
	Active      time.Duration // computes ran, each of them
	Compute     time.Duration // the same, times the size in compute units
	Written     int64         // bytes of WAL
	Transferred int64         // bytes from computes to clients

	// Byte-hours: the largest size seen in each hour, added up.
	RootHours    int64 // of the data of root branches
	ChildHours   int64 // of what other branches add: at most what was written on them since they forked
	HistoryHours int64 // of the WAL that is kept
	LogicalHours int64 // of the databases

	// Bytes, as last seen in the time frame; known of projects only.
	Storage int64 // data, and the WAL that is kept
	Logical int64
}

// StorageHours are the byte-hours of data and history.
func (u Usage) StorageHours() int64 { return u.RootHours + u.ChildHours + u.HistoryHours }

// UsageFrame is the usage of one hour, day or month.
type UsageFrame struct {
	ProjectID string
	BranchID  string // "": the whole project
	Start     time.Time
	Usage
}

// The grains of usage.
const (
	GrainHour  = "hour"
	GrainDay   = "day"
	GrainMonth = "month"
)

// Frame returns the time frame that holds t: whole hours, days and calendar months in UTC.
func Frame(grain string, t time.Time) (start, end time.Time) {
	t = t.UTC()
	switch grain {
	case GrainHour:
		start = t.Truncate(time.Hour)
		return start, start.Add(time.Hour)
	case GrainDay:
		start = time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
		return start, start.AddDate(0, 0, 1)
	}
	start = time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	return start, start.AddDate(0, 1, 0)
}

// ConsumptionPeriod is what usage and quotas are counted over: the calendar month of t, in UTC.
func ConsumptionPeriod(t time.Time) (start, end time.Time) { return Frame(GrainMonth, t) }
