use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

const MEMORY_SIZE: usize = 1 << 20;
const ALL: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// What the transport did to the device.
#[derive(Default)]
struct Record {
    activations: Mutex<Vec<Activation>>,
    resets: AtomicUsize,
}

struct Recorder {
    record: Arc<Record>,
    refuse: bool,
}

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        42
    }

    fn name(&self) -> &'static str {
        "recorder"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 8]
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | EVENT_IDX | 1
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::super::device::read_config_space(&[1, 2, 3, 4, 5], offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::Thread {
                device: "recorder",
                source: std::io::Error::other("no thread to be had"),
            });
        }
        self.record.activations.lock().unwrap().push(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.record.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bus {
    transport: MmioTransport,
    record: Arc<Record>,
    interrupt: Arc<Interrupt>,
    notifications: Vec<EventFd>,
}

impl Bus {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(refuse: bool) -> Self {
        let record = Arc::new(Record::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
        let interrupt = Arc::new(Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let notifications = vec![event(), event()];
        let device = Recorder {
            record: Arc::clone(&record),
            refuse,
        };
        let clones = notifications
            .iter()
            .map(|event| event.try_clone().unwrap())
            .collect();
        Self {
            transport: MmioTransport::new(Box::new(device), Arc::new(memory), Arc::clone(&interrupt), clones),
            record,
            interrupt,
            notifications,
        }
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    /// Walks to FEATURES_OK accepting `features`.
    fn negotiate(&mut self, features: u64) {
        self.write(register::VIRTIO_MMIO_STATUS, 0);
        self.write(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for page in 0..2 {
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            let value = super::page(features, page);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.write(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn place_queue(&mut self, queue: u32, size: u32, areas: [u64; 3]) {
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, queue);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, size);
        let registers = [
            register::VIRTIO_MMIO_QUEUE_DESC_LOW,
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            register::VIRTIO_MMIO_QUEUE_USED_LOW,
        ];
        for (low, address) in registers.into_iter().zip(areas) {
            self.write(low, super::page(address, 0));
            self.write(low + 4, super::page(address, 1));
        }
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn activations(&self) -> usize {
        self.record.activations.lock().unwrap().len()
    }
}

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | EVENT_IDX;

#[test]
fn identity_registers_show_a_modern_device() {
    let bus = Bus::new();
    assert_eq!(
        bus.read(register::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(),
        *b"virt"
    );
    assert_eq!(bus.read(register::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(bus.read(register::VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(bus.read(register::VIRTIO_MMIO_VENDOR_ID).to_le_bytes(), *b"BLKH");
    assert_eq!(bus.read(register::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn features_are_shown_in_two_pages_and_nothing_beyond() {
    let mut bus = Bus::new();
    for (page, shown) in [(0, 1 << 29 | 1), (1, 1), (2, 0), (u32::MAX, 0)] {
        bus.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
        assert_eq!(
            bus.read(register::VIRTIO_MMIO_DEVICE_FEATURES),
            shown,
            "page {page}"
        );
    }
}

#[test]
fn a_driver_that_does_everything_in_order_activates_the_device_once() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.place_queue(0, 32, [0x1000, 0x2000, 0x3000]);
    bus.place_queue(1, 8, [0x4000, 0x5002, 0x6004]);
    assert_eq!(bus.read(register::VIRTIO_MMIO_QUEUE_READY), 1);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);

    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), ALL);
    let activations = bus.record.activations.lock().unwrap();
    let [activation] = activations.as_slice() else {
        panic!("{} activations", activations.len());
    };
    assert_eq!(activation.features, FEATURES);
    let state = activation.queues[0].queue.state();
    assert_eq!((state.size, state.desc_table), (32, 0x1000));
    assert!(state.event_idx_enabled && state.ready);
    assert_eq!(activation.queues[1].queue.used_ring(), 0x6004);
}

#[test]
fn features_without_version_1_or_not_offered_are_refused() {
    for features in [0, EVENT_IDX, FEATURES | 2, FEATURES | 1 << 40] {
        let mut bus = Bus::new();
        bus.negotiate(features);
        bus.write(register::VIRTIO_MMIO_STATUS, ALL);
        assert_eq!(
            bus.read(register::VIRTIO_MMIO_STATUS),
            ACKNOWLEDGE | DRIVER,
            "{features:x}"
        );
        assert_eq!(bus.activations(), 0);
    }
}

#[test]
fn driver_ok_before_its_predecessors_is_ignored() {
    let mut bus = Bus::new();
    bus.write(register::VIRTIO_MMIO_STATUS, DRIVER_OK);
    bus.write(register::VIRTIO_MMIO_STATUS, FEATURES_OK | DRIVER_OK);
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), 0);
    assert_eq!(bus.activations(), 0);
}

#[test]
fn a_status_that_takes_bits_back_is_ignored() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.write(register::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    assert_eq!(
        bus.read(register::VIRTIO_MMIO_STATUS),
        ACKNOWLEDGE | DRIVER | FEATURES_OK
    );
}

#[test]
fn a_driver_that_failed_can_only_reset() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.write(register::VIRTIO_MMIO_STATUS, FAILED | ALL & !DRIVER_OK);
    bus.write(register::VIRTIO_MMIO_STATUS, FAILED | ALL);
    assert_eq!(bus.activations(), 0);
    bus.write(register::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn queues_that_are_misplaced_or_missized_do_not_become_ready() {
    let end = MEMORY_SIZE as u64;
    let good = [0x1000, 0x2000, 0x3000];
    for (size, areas) in [
        (0, good),
        (3, good),
        (128, good),
        (u32::MAX, good),
        (64, [0x1008, 0x2000, 0x3000]),
        (64, [0x1000, 0x2001, 0x3000]),
        (64, [0x1000, 0x2000, 0x3002]),
        (64, [end - 16, 0x2000, 0x3000]),
        (64, [0x1000, end - 2, 0x3000]),
        (64, [0x1000, 0x2000, end]),
        (64, [0x1000, 0x2000, u64::MAX - 3]),
        (64, [u64::MAX - 15, 0x2000, 0x3000]),
    ] {
        let mut bus = Bus::new();
        bus.negotiate(FEATURES);
        bus.place_queue(0, size, areas);
        assert_eq!(
            bus.read(register::VIRTIO_MMIO_QUEUE_READY),
            0,
            "{size} {areas:x?}"
        );
    }
}

#[test]
fn a_queue_may_end_where_memory_ends() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.place_queue(0, 64, [0x1000, 0x2000, MEMORY_SIZE as u64 - 520]);
    assert_eq!(bus.read(register::VIRTIO_MMIO_QUEUE_READY), 1);
}

#[test]
fn queues_that_do_not_exist_show_no_size_and_take_no_writes() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    for queue in [2, 1000, u32::MAX] {
        bus.place_queue(queue, 8, [0x1000, 0x2000, 0x3000]);
        assert_eq!(bus.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(bus.read(register::VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn queues_cannot_be_moved_while_the_device_runs() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.place_queue(0, 32, [0x1000, 0x2000, 0x3000]);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);
    bus.write(register::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(bus.read(register::VIRTIO_MMIO_QUEUE_READY), 1);
}

#[test]
fn a_notification_reaches_its_queue_only_while_the_device_runs() {
    let mut bus = Bus::new();
    bus.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    assert!(bus.notifications[1].read().is_err());

    bus.negotiate(FEATURES);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);
    for queue in [1, 2, u32::MAX] {
        bus.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
    assert_eq!(bus.notifications[1].read().unwrap(), 1);
    assert!(bus.notifications[0].read().is_err());
}

#[test]
fn an_interrupt_stays_until_it_is_acknowledged() {
    let mut bus = Bus::new();
    bus.interrupt.signal_used_buffers().unwrap();
    bus.interrupt.signal_config_change().unwrap();
    assert_eq!(bus.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    bus.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(bus.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert_eq!(bus.interrupt.line().read().unwrap(), 2);
}

#[test]
fn reset_stops_the_device_and_forgets_the_driver() {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.place_queue(0, 32, [0x1000, 0x2000, 0x3000]);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);
    bus.interrupt.request_reset().unwrap();
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), ALL | NEEDS_RESET);

    let resets = bus.record.resets.load(Ordering::SeqCst);
    bus.write(register::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(bus.record.resets.load(Ordering::SeqCst), resets + 1);
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), 0);
    assert_eq!(bus.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(bus.read(register::VIRTIO_MMIO_QUEUE_READY), 0);

    bus.negotiate(FEATURES);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);
    assert_eq!(bus.activations(), 2);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset_and_is_reported() {
    let mut bus = Bus::with(true);
    let reported = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reported);
    bus.transport = bus
        .transport
        .on_failure(Arc::new(move |failure| sink.lock().unwrap().push(failure)));
    bus.negotiate(FEATURES);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);

    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), ALL | NEEDS_RESET);
    assert_eq!(bus.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    let reported = reported.lock().unwrap();
    assert_eq!(reported.len(), 1);
    assert_eq!(reported[0].to_string(), "virtio device recorder failed");
    assert_eq!(reported[0].source.to_string(), "starting the recorder thread");
}

#[test]
fn configuration_is_read_in_any_width_and_ends_in_zeros() {
    let bus = Bus::new();
    let mut data = [0xff; 8];
    bus.transport.read(0x101, &mut data);
    assert_eq!(data, [2, 3, 4, 5, 0, 0, 0, 0]);
    bus.transport.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
}

proptest! {
    /// Whatever a driver does, in whatever width and order, the transport neither panics nor hands the device a queue
    /// outside memory.
    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u64..0x110, 0usize..10, prop_oneof![
                Just(0u64), Just(1), Just(3), Just(11), Just(15), Just(0x1000), Just(8), any::<u64>(),
            ]),
            0..200,
        ),
    ) {
        let mut bus = Bus::new();
        for (is_write, offset, width, value) in accesses {
            let mut data = [0; 16];
            data[..8].copy_from_slice(&value.to_le_bytes());
            if is_write {
                bus.transport.write(offset, &data[..width]);
            } else {
                bus.transport.read(offset, &mut data[..width]);
            }
        }
        for activation in bus.record.activations.lock().unwrap().iter() {
            for active in activation.queues.iter().filter(|active| active.queue.ready()) {
                prop_assert!(active.queue.used_ring() < MEMORY_SIZE as u64);
            }
        }
    }
}

/// A running device's state, as if its thread had served the queues as far as `positions`.
fn saved_state(positions: serde_json::Value) -> serde_json::Value {
    let mut bus = Bus::new();
    bus.negotiate(FEATURES);
    bus.place_queue(0, 16, [0x1000, 0x2000, 0x3000]);
    bus.place_queue(1, 8, [0x4000, 0x5000, 0x6000]);
    bus.write(register::VIRTIO_MMIO_STATUS, ALL);
    bus.interrupt.signal_used_buffers().unwrap();
    let mut state = serde_json::to_value(bus.transport.save().unwrap()).unwrap();
    assert_eq!(
        state["positions"],
        serde_json::Value::Null,
        "the recorder has no thread"
    );
    state["positions"] = positions;
    state
}

fn positions() -> serde_json::Value {
    serde_json::json!([{"next_available": 7, "next_used": 5}, {"next_available": 65535, "next_used": 65535}])
}

#[test]
fn a_restored_device_goes_on_with_its_registers_and_queues() {
    let state = serde_json::from_value(saved_state(positions())).unwrap();
    let mut bus = Bus::new();
    bus.transport.restore(&state).unwrap();
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), ALL);
    assert_eq!(bus.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert_eq!(
        bus.interrupt.line().read().unwrap(),
        1,
        "the line is raised again"
    );
    let activations = bus.record.activations.lock().unwrap();
    let [activation] = &activations[..] else {
        panic!("{} activations", activations.len())
    };
    assert_eq!(activation.features, FEATURES);
    let [first, second] = &activation.queues[..] else {
        panic!("{} queues", activation.queues.len())
    };
    assert_eq!((first.queue.next_avail(), first.queue.next_used()), (7, 5));
    assert_eq!((first.queue.size(), first.queue.desc_table()), (16, 0x1000));
    assert_eq!(second.queue.next_avail(), 65535);
    assert!(second.queue.event_idx_enabled());
}

#[test]
fn a_restored_device_without_a_driver_waits_for_one() {
    let mut state = saved_state(serde_json::Value::Null);
    state["status"] = ACKNOWLEDGE.into();
    let mut bus = Bus::new();
    bus.transport
        .restore(&serde_json::from_value(state).unwrap())
        .unwrap();
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), ACKNOWLEDGE);
    assert_eq!(bus.activations(), 0);
}

#[test]
fn a_restored_device_that_was_broken_still_needs_its_reset() {
    let mut state = saved_state(serde_json::Value::Null);
    state["needs_reset"] = true.into();
    let mut bus = Bus::new();
    bus.transport
        .restore(&serde_json::from_value(state).unwrap())
        .unwrap();
    assert_eq!(bus.read(register::VIRTIO_MMIO_STATUS), ALL | NEEDS_RESET);
    assert_eq!(bus.activations(), 0);
}

#[test]
fn a_state_that_is_not_this_devices_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(Change, &str); 6] = [
        (|state| state["queues"] = serde_json::json!([]), "queues"),
        (|state| state["queues"][0]["max_size"] = 32.into(), "queues"),
        (
            |state| state["queues"][0]["used_ring"] = (u64::MAX - 3).into(),
            "queue addresses",
        ),
        (|state| state["driver_features"] = u64::MAX.into(), "features"),
        (
            |state| state["positions"] = serde_json::json!([]),
            "queue positions",
        ),
        (|state| state["status"] = 0.into(), "queue positions"),
    ];
    for (change, what) in changes {
        let mut state = saved_state(positions());
        change(&mut state);
        let mut bus = Bus::new();
        let error = bus
            .transport
            .restore(&serde_json::from_value(state).unwrap())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the saved {what} of recorder cannot be those of this device")
        );
        assert_eq!(bus.activations(), 0);
    }
}
