package postgres_test

import (
	"testing"

	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

// TestStandbySettings: a standby has each limit at least as high as its primary, whatever its own size and settings say.
func TestStandbySettings(t *testing.T) {
	build := pgtest.Build(t)
	primary := postgres.LimitsOf(postgres.Config(postgres.ConfigOptions{
		Build: build, Size: postgres.SizeSpec{MinCU: 2, MaxCU: 2}, PGSettings: map[string]string{"max_prepared_transactions": "7"},
	}))
	if primary.Connections != 839 || primary.Workers != 16 || primary.Prepared != 7 || primary.Locks != 16 {
		t.Errorf("the limits of a primary with 2 CU: %+v", primary)
	}
	settings := postgres.Config(postgres.ConfigOptions{
		Build: build, Size: postgres.SizeSpec{MinCU: 0.25, MaxCU: 0.25}, PGSettings: map[string]string{"max_locks_per_transaction": "128"},
		Standby: &postgres.Standby{Name: "ep-x", Primary: `/run/it's\here`, Slot: "bough_ep_x", AtLeast: primary},
	})
	got := postgres.LimitsOf(settings)
	if !got.Covers(primary) || got.Locks != 128 || primary.Covers(got) {
		t.Errorf("the limits of its standby with 0.25 CU: %+v", got)
	}
	values := map[string]string{}
	for _, s := range settings {
		values[s.Name] = s.Value
	}
	want := `host='/run/it\'s\\here' port=5432 user=cloud_admin application_name='ep-x' sslmode=disable gssencmode=disable ` +
		`passfile=/dev/null connect_timeout=5 options='-c wal_sender_timeout=5s'`
	if values["primary_conninfo"] != want || values["primary_slot_name"] != "bough_ep_x" || values["hot_standby"] != "on" {
		t.Errorf("primary_conninfo is %s\nwant %s\nslot %s", values["primary_conninfo"], want, values["primary_slot_name"])
	}
	if name := postgres.SlotName("ep-odd-band-a1b2c3d4"); name != "bough_ep_odd_band_a1b2c3d4" {
		t.Error(name)
	}
}
